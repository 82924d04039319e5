//! The last events of a world, for who reads a failing seed.

use std::collections::VecDeque;

/// Remembers what happened at which node, in words.
pub(super) struct Journal {
    lines: VecDeque<(u64, usize, String)>,
    most: usize,
}

impl Journal {
    /// Remembers this many events; none: costs nothing.
    pub(super) fn keeping(most: usize) -> Self {
        Self { lines: VecDeque::new(), most }
    }

    pub(super) fn note(&mut self, now_us: u64, node: usize, what: impl FnOnce() -> String) {
        if self.most == 0 {
            return;
        }
        // Enough of every node, whichever is asked for in the end.
        if self.lines.len() >= self.most.saturating_mul(8) {
            self.lines.pop_front();
        }
        self.lines.push_back((now_us, node, what()));
    }

    /// The last events of these nodes; of all, if none is named.
    pub(super) fn lines(&self, nodes: &[usize]) -> Vec<String> {
        let of_them = self.lines.iter().filter(|(_, node, _)| nodes.is_empty() || nodes.contains(node));
        let mut lines: Vec<String> = of_them
            .rev()
            .take(self.most)
            .map(|(us, node, what)| format!("{:>4}.{:06} n{node} {what}", us / 1_000_000, us % 1_000_000))
            .collect();
        lines.reverse();
        lines
    }
}
