//! What the process takes of its machine, as Linux tells it; elsewhere nothing is told.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::names;
use super::sheet::Sheet;

/// Writes down memory, CPU time and file descriptors.
pub(super) fn write(sheet: &mut Sheet) {
    if let Some((cpu_seconds, resident_bytes)) =
        fs::read_to_string("/proc/self/stat").ok().and_then(|s| stat(&s))
    {
        sheet.seconds(&names::CPU, cpu_seconds);
        sheet.gauge(&names::RESIDENT, &[], resident_bytes);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        sheet.gauge(&names::OPEN_FDS, &[], open.count() as f64); // with the one that looks
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        sheet.gauge(&names::MAX_FDS, &[], most as f64);
    }
}

/// CPU time in seconds and resident memory in bytes, of `/proc/PID/stat`.
fn stat(text: &str) -> Option<(f64, f64)> {
    // Behind the program's name, which may contain anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = field(14)? + field(15)?;
    Some((ticks as f64 / clock_ticks_per_second() as f64, (field(24)? * page_size() as u64) as f64))
}

#[cfg(test)]
mod tests {
    use super::{Sheet, page_size, stat, write};

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let text = "7 (a ) b) R 1 7 7 0 -1 4194304 90 0 0 0 150 50 0 0 20 0 1 0 62 5 3 184467 1 1 0 0 0 0 0 0 0 0 0 0 17";
        assert_eq!(stat(text), Some((2.0, 3.0 * page_size() as f64)));
        assert_eq!(stat("7 (a) R 1"), None);
        assert_eq!(stat(""), None);
    }

    #[test]
    fn the_own_process_takes_something() {
        let mut sheet = Sheet::default();
        write(&mut sheet);
        let told = sheet.text(true).0;
        let value = |name: &str| -> f64 {
            let line = told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse().ok()).unwrap_or_default()
        };
        assert!(value("process_resident_memory_bytes") > 1e6, "{told}");
        assert!(
            value("process_open_fds") >= 3.0 && value("process_max_fds") >= value("process_open_fds"),
            "{told}"
        );
        assert!(told.contains("\nprocess_cpu_seconds_total "), "{told}");
    }
}
