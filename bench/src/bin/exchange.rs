//! Prints what two members say to each other beside the changes themselves. The argument is the share of the full sizes, 1
//! by default.

use std::collections::BTreeMap;

#[path = "../exchange.rs"]
mod exchange;

/// As the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let share: f64 = std::env::args().nth(1).map_or(Ok(1.0), |share| share.parse())?;
    let of = |full: f64| ((full * share) as usize).max(200);
    let keys = of(1e6);
    for missing in [1, 100] {
        show(&format!("{missing} of {keys} keys missing, until repaired"), &exchange::repair(keys, missing)?);
    }
    let shards = of(1e6);
    show(&format!("one comparison of {shards} shards in step"), &exchange::compare(shards)?);
    let seconds = of(3_600.0);
    let said = exchange::heal(seconds)?;
    show(&format!("after a cut of {seconds} s with 500 writes/s on each side"), &said);
    let bytes = |data: bool| -> usize {
        said.iter().filter(|(name, _)| (**name == "changes") == data).map(|(_, said)| said.bytes).sum()
    };
    println!(
        "  beside the changes: {:.3} % of their bytes",
        bytes(false) as f64 * 100.0 / bytes(true) as f64
    );
    Ok(())
}

fn show(title: &str, said: &BTreeMap<&'static str, exchange::Said>) {
    let bytes: usize = said.values().map(|said| said.bytes).sum();
    let frames: usize = said.values().map(|said| said.frames).sum();
    println!("{title}: {bytes} B in {frames} frames");
    for (name, said) in said {
        println!("  {name:<12} {:>8} frames {:>12} B", said.frames, said.bytes);
    }
}
