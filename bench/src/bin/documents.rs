//! Prints what documents cost. The argument selects rows by the beginning of their name.

#[path = "../documents.rs"]
mod documents;

/// As the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let filter = std::env::args().nth(1).unwrap_or_default();
    println!("{:<52} {:>10}   min..max (us of one core)", "", "median");
    documents::run(&filter, |row| {
        println!("{:<52} {:>10.2}   {:.2}..{:.2}", row.name, row.median, row.min, row.max);
    })?;
    Ok(())
}
