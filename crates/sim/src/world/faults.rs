//! The fault menu: what breaks, for how long, and how it is made whole.

use super::{What, World};

/// What may break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// A link carries nothing.
    LinkCut,
    /// A link carries nothing one way.
    LinkCutOneWay,
    /// A region is cut off.
    RegionCut,
    /// A region hears the others and is not heard.
    RegionMute,
    /// A link is cut and mended again and again.
    LinkFlaps,
    /// One way of a link takes seconds.
    SlowOneWay,
    /// A connection breaks.
    Reset,
    /// A node crashes.
    Crash,
    /// A node crashes again soon after each start.
    CrashLoop,
    /// A node does nothing for a while.
    Pause,
    /// A wall clock is set forward or back.
    ClockJump,
    /// Syncs take long.
    SlowDisk,
    /// A node's store is gone.
    LostStore,
    /// A node is started from an old copy of its store.
    OldCopy,
    /// A row of a key rots on a disk, or is gone.
    BitRot,
    /// A frame of changes is forged on its way.
    Hostile,
}

impl FaultKind {
    /// Every one.
    pub(crate) const ALL: [Self; 16] = [
        Self::LinkCut,
        Self::LinkCutOneWay,
        Self::RegionCut,
        Self::RegionMute,
        Self::LinkFlaps,
        Self::SlowOneWay,
        Self::Reset,
        Self::Crash,
        Self::CrashLoop,
        Self::Pause,
        Self::ClockJump,
        Self::SlowDisk,
        Self::LostStore,
        Self::OldCopy,
        Self::BitRot,
        Self::Hostile,
    ];
}

/// How what a fault broke is made whole.
#[derive(Debug)]
pub(super) enum Mend {
    Link(usize, usize),
    Speed(usize, usize),
    Start(usize),
    Resume(usize),
    Clock(usize),
    Disk(usize),
    /// Not whole: the link is cut again, so many times.
    CutAgain(usize, usize, u64),
    /// Not whole: the node starts and crashes, so many times.
    CrashAgain(usize, u64),
}

impl World {
    pub(super) fn fault(&mut self) {
        if self.settling || self.report.faults >= self.size.faults {
            return;
        }
        let next = self.rng.between(100_000, 2_500_000);
        self.schedule(next, What::Fault);
        self.report.faults += 1;
        let a = self.rng.index(self.nodes.len());
        let b = (a + 1 + self.rng.index(self.nodes.len() - 1)) % self.nodes.len();
        let lasts = if self.rng.chance(15) {
            self.rng.between(5_000_000, 20_000_000)
        } else {
            self.rng.between(10_000, 4_000_000)
        };
        let kind = *self.rng.pick(&self.config.menu);
        self.journal.note(self.now_us, a, || format!("fault: {kind:?} (and n{b}) for {lasts} us"));
        let (what, mend) = match kind {
            FaultKind::LinkCut => {
                self.cut(a, b);
                self.cut(b, a);
                ("fault: link cut", Mend::Link(a, b))
            }
            FaultKind::LinkCutOneWay => {
                self.cut(a, b);
                ("fault: link cut one way", Mend::Link(a, b))
            }
            FaultKind::RegionCut | FaultKind::RegionMute => {
                let mute = kind == FaultKind::RegionMute;
                for peer in (0..self.nodes.len()).filter(|peer| *peer != a) {
                    self.cut(a, peer);
                    if !mute {
                        self.cut(peer, a);
                    }
                    if peer != b {
                        self.schedule(lasts, What::Mend(Mend::Link(a, peer)));
                    }
                }
                (if mute { "fault: region mute" } else { "fault: region cut off" }, Mend::Link(a, b))
            }
            FaultKind::LinkFlaps => {
                let times = self.rng.between(3, 30);
                self.mend(Mend::CutAgain(a, b, times));
                return self.cover("fault: link flaps");
            }
            FaultKind::SlowOneWay => {
                let slow_us = self.rng.between(300_000, 6_000_000);
                if let Some(direction) = self.network.direction(a, b) {
                    direction.slow_us = slow_us;
                }
                ("fault: slow one way", Mend::Speed(a, b))
            }
            FaultKind::Reset => {
                self.reset(a, b);
                return self.cover("fault: connection reset");
            }
            FaultKind::Crash => {
                self.crash(a);
                ("fault: crash", Mend::Start(a))
            }
            FaultKind::CrashLoop => {
                self.crash(a);
                let times = self.rng.between(1, 5);
                self.mend(Mend::CrashAgain(a, times));
                return self.cover("fault: crash loop");
            }
            FaultKind::Pause => {
                self.nodes[a].paused = true;
                ("fault: pause", Mend::Resume(a))
            }
            FaultKind::ClockJump => {
                let reach = *self.rng.pick(&[3_600_000, 3_000]);
                self.nodes[a].offset_ms = self.rng.between(0, 2 * reach) as i64 - reach as i64;
                ("fault: clock jump", Mend::Clock(a))
            }
            FaultKind::SlowDisk => {
                self.nodes[a].sync_us = (20_000, 800_000);
                ("fault: slow disk", Mend::Disk(a))
            }
            FaultKind::LostStore | FaultKind::OldCopy => {
                // One at a time: two at once would be two fault domains.
                if self.nodes.iter().any(|node| !node.is_open()) {
                    return self.cover("a store was not lost, for a node was away");
                }
                // What rotted on one disk must be on another.
                if !self.checkers.truth.rotten.is_empty() {
                    return self.cover("a store was not lost, for a row had rotted elsewhere");
                }
                if kind == FaultKind::LostStore && self.rng.chance(50) {
                    self.lose_store(a, None);
                    ("fault: store lost", Mend::Start(a))
                } else if kind == FaultKind::LostStore {
                    self.damage_store(a);
                    ("fault: store damaged", Mend::Start(a))
                } else if self.put_back_old_copy(a) {
                    ("fault: old copy", Mend::Start(a))
                } else {
                    return self.cover("there was no old copy");
                }
            }
            FaultKind::BitRot => {
                if !self.rot(a) {
                    return self.cover("there was nothing that could rot");
                }
                ("fault: bit rot", Mend::Start(a))
            }
            FaultKind::Hostile => {
                self.forging.push((a, b));
                return self.cover("fault: hostile frame");
            }
        };
        self.cover(what);
        self.schedule(lasts, What::Mend(mend));
    }

    fn cut(&mut self, from: usize, to: usize) {
        if let Some(direction) = self.network.direction(from, to) {
            direction.cut = true;
        }
    }

    pub(super) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Link(a, b) => {
                let mut was_cut = false;
                for (from, to) in [(a, b), (b, a)] {
                    if let Some(direction) = self.network.direction(from, to) {
                        was_cut |= std::mem::take(&mut direction.cut);
                    }
                }
                // Bytes were swallowed: connections open during the cut are reset.
                if was_cut {
                    self.reset(a, b);
                }
            }
            Mend::Speed(a, b) => {
                if let Some(direction) = self.network.direction(a, b) {
                    direction.slow_us = 0;
                }
            }
            Mend::Start(node) => self.start(node),
            Mend::Resume(node) => {
                self.nodes[node].paused = false;
                self.wake(node, 0);
            }
            Mend::Clock(node) => self.nodes[node].offset_ms = 0,
            Mend::Disk(node) => self.nodes[node].sync_us = self.config.sync_us,
            Mend::CutAgain(a, b, times) => {
                self.mend(Mend::Link(a, b));
                if times == 0 || self.settling {
                    return;
                }
                let (whole, cut) = (self.rng.between(1_000, 400_000), self.rng.between(1_000, 300_000));
                if times.is_multiple_of(2) {
                    self.cut(a, b);
                    self.cut(b, a);
                    self.schedule(cut, What::Mend(Mend::CutAgain(a, b, times - 1)));
                } else {
                    self.schedule(whole, What::Mend(Mend::CutAgain(a, b, times - 1)));
                }
            }
            Mend::CrashAgain(node, times) => {
                if times == 0 || self.settling {
                    return self.start(node);
                }
                if self.nodes[node].running.is_some() {
                    self.crash(node);
                } else {
                    self.start(node);
                }
                let pause = self.rng.between(1_000, 600_000);
                let times = times - u64::from(self.nodes[node].running.is_none());
                self.schedule(pause, What::Mend(Mend::CrashAgain(node, times)));
            }
        }
    }
}
