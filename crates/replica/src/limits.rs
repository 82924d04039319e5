//! The replica's limits, each with its unit and reason.

/// Most bytes of changes in one frame: a frame is also the unit in which a slow link delays the next one.
pub const FRAME_BYTES: usize = 256 * 1024;
/// Most bytes of changes sent to a peer and not yet told back: what a link of 150 ms needs for 28 MB/s.
pub const CREDIT_BYTES: usize = 4 * 1024 * 1024;
/// What it is when a link begins: the peer's pace is not known yet.
pub const CREDIT_FIRST_BYTES: usize = 1024 * 1024;
/// The peer is sent what it takes in this time (us), beyond what the way there holds: so long what is new may have to
/// wait behind it.
pub const CREDIT_DELAY_US: u64 = 250_000;
/// Changes a sender remembers per link as not yet told back, sent or left to others; beyond it the walk waits.
pub const OUTSTANDING_CHANGES: usize = 65_536;
/// While changes are in flight, the next ones wait this long (us) for company: short beside any link between regions,
/// long enough that 500 writes a second share frames.
pub const BATCH_LINGER_US: u64 = 2_000;
/// Changes kept in memory after their commit so that links that keep up never read the log; bytes.
pub const RECENT_BYTES: usize = 16 * 1024 * 1024;
/// Changes of one turn that are told with their trace; more are only counted. One bulk call's items, and some more.
pub const TRACED_CHANGES: usize = 1_024;
/// Changes received before what they depend on; bytes. What does not fit is dropped and sent again.
pub const PENDING_BYTES: usize = 8 * 1024 * 1024;
/// Memory a pending or recent change costs besides its bytes.
pub const CHANGE_OVERHEAD_BYTES: usize = 256;
/// Shards whose vector is kept in memory, at some [`CACHED_SHARD_BYTES`] each. Others are read back when needed.
pub const CACHED_SHARDS: usize = 65_536;
/// Memory that a shard in memory takes, about: vectors of a few origins, the record, and the maps they are in. Bytes.
pub const CACHED_SHARD_BYTES: usize = 400;
/// The highest life of a key. No key is deleted and made again that often; a peer's change that says more is refused, for
/// behind the last number there would be no next life.
pub const MAX_LIFE: u64 = 1 << 48;
/// Client writes that wait for other regions' disks; beyond it such writes are refused.
pub const WAITING_WRITES: usize = 10_000;
/// Heartbeat interval, us.
pub const HEARTBEAT_US: u64 = 200_000;
/// A peer that was not heard for this long (us) is silent: others relay for it.
pub const SILENT_US: u64 = 2_000_000;
/// A link on which nothing was heard for this long (us) is dropped and dialled again.
pub const DEAD_US: u64 = 5_000_000;
/// Sent changes that are not told back in this time (us), beyond the round trip, are sent again.
pub const RESEND_US: u64 = 2_000_000;
/// A change whose dependencies are missing for this long (us) asks its sender for them.
pub const WANT_US: u64 = 250_000;
/// How often that time doubles while nothing comes: to half a minute.
pub const WANT_DOUBLINGS: u32 = 7;
/// A difference between vectors that lasts this long (us) is not traffic under way: its changes are asked for.
pub const SETTLE_US: u64 = 2_000_000;
/// Interval of vector comparison per link, us.
pub const COMPARE_US: u64 = 10_000_000;
/// Shards in one frame of vectors: a larger difference takes several comparisons.
pub const VECTORS_PER_FRAME: usize = 512;
/// Differences remembered per link while they settle.
pub const SUSPECTS: usize = 4_096;
/// What a peer is told lazily (it did not send it to us) waits this long, us.
pub const TELL_LAZILY_US: u64 = 100_000;
/// That a change came is told within this time (us) when it was late: nobody waits for it, and each part of a frame that
/// is taken would cost a frame of its own. Short beside the time over which a link's credit is measured.
pub const TELL_LATE_US: u64 = 25_000;
/// What is remembered of peers is written this often at most, us: older is only sent again.
pub const PEER_ROWS_US: u64 = 1_000_000;
/// Changes of one client write or frame whose number this node accepts from a peer: larger frames are refused.
pub const FRAME_CHANGES: usize = 16_384;
/// A window of the budget, us: what a driver tells of the foreground at once. Short beside what a person notices, long
/// enough that 500 writes a second are a hundred samples.
pub const WINDOW_US: u64 = 200_000;
/// The pace never falls below this, percent: work that takes a second of an idle node takes ten, and comes to an end.
pub const FLOOR_PERCENT: u64 = 10;
/// The pace at which background work goes on when clients come after a time without any, percent.
pub const START_PERCENT: u64 = 25;
/// The foreground is slowed when its 99th percentile exceeds this much of what it is without background work, percent.
pub const SLOWED_PERCENT: u64 = 150;
/// What the pace rises by when the foreground is not slowed, percent: from the floor to all in ten seconds.
pub const PACE_STEP_PERCENT: u64 = 2;
/// The pace is judged after so many calls of clients: of fewer, the one slowest would decide alone.
pub const JUDGED_CALLS: u64 = 100;
/// It is judged after so many windows also when there were fewer: a second.
pub const JUDGED_WINDOWS: u32 = 5;
/// After so many windows without a call background work takes what clients leave, until they call again.
pub const QUIET_WINDOWS: u32 = 3;
/// After so many windows without a call nobody is in the foreground: two seconds.
pub const IDLE_WINDOWS: u32 = 10;
/// After so many windows background work rests for two, to know what the foreground is like without: 8 % of the time.
pub const REST_EVERY_WINDOWS: u32 = 23;
/// The longest stretch of background work, us, at a pace of 100 percent; at the floor a hundredth.
pub const STRETCH_US: u64 = 10_000;
/// About how long one late change takes, us: what a driver assumes that has not measured it.
pub const LATE_CHANGE_US: u64 = 8;
/// A peer's change is late when it is older than this, ms: it did not come with its time, so it is background work to
/// take it. As long as a peer may be silent.
pub const LATE_MS: u64 = 2_000;
/// How often the steward of a scope on its way asks its owners, us: a step takes one or two of these and a round trip.
pub const MOVE_ASK_US: u64 = 250_000;
/// A record that was proposed and did not come is proposed again after this, us.
pub const MOVE_PROPOSE_US: u64 = 3_000_000;
/// Scopes that a node brings on their way at once; others wait their turn.
pub const MOVES_AT_ONCE: usize = 64;
/// Rows of shards that are no longer held which are deleted in one step, and about how long one takes, us.
pub const DELETED_ROWS: usize = 1_000;
/// See [`DELETED_ROWS`].
pub const DELETED_ROW_US: u64 = 4;
/// Changes that are read from the log for one peer in one turn, and about how long that takes, us.
pub const WALKED_CHANGES: usize = 4_000;
/// See [`WALKED_CHANGES`].
pub const WALKED_US: u64 = 10_000;
/// Bytes of a shard's states sent to a peer and not yet staged there: what a link of 150 ms needs for 28 MB/s.
pub const TRANSFER_CREDIT_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of states that are read for one peer in one turn: some 2 ms.
pub const GIVING_TURN_BYTES: usize = 1024 * 1024;
/// About how long that takes, us.
pub const GIVING_TURN_US: u64 = 2_000;
/// The smallest part that states are given in, bytes, however short a turn is to be.
pub const LEAST_PART_BYTES: usize = 16 * 1024;
/// Bytes of one part unless the node is configured otherwise: about as long as a turn of 1 ms at the taker.
pub const PART_BYTES: usize = 64 * 1024;
/// Parts of a shard that are kept when they come before the one that is next.
pub const EARLY_PARTS: usize = 256;
/// Rows that are read from a snapshot at once.
pub const GIVEN_ROWS: usize = 256;
/// Shards given to one peer at once; it asks again for others.
pub const GIVEN_AT_ONCE: usize = 16;
/// Shards that come here as a whole at once; others are asked for when there is room.
pub const TAKEN_AT_ONCE: usize = 16;
/// A transfer of which nothing came for this long (us) is asked for again, and twice as long after it was last heard of,
/// its giver lets go of it.
pub const TRANSFER_PATIENCE_US: u64 = 3_000_000;
/// Changes that are looked at to go on with a transfer that was interrupted; after more it begins anew.
pub const RESUME_CHANGES: usize = 10_000;
/// Staged keys that are merged in one step: some 2 ms; shards with at most as many are merged as they land.
pub const SETTLE_KEYS: usize = 64;
/// About how long such a step takes, us.
pub const SETTLE_STEP_US: u64 = 2_000;
/// Changes of one origin that are wanted one by one; where more are missing, the shard comes as a whole.
pub const WANTED_CHANGES: u64 = 4_096;
/// Places of frames that overtook late ones, of one peer: they are remembered until the late ones are taken. As many as a
/// driver lets wait of other frames.
pub const OVERTAKEN_PLACES: usize = 2_048;
/// A store that is rebuilt waits so long (us) after the first peer for others to answer: all that are there have by then.
pub const REBUILD_ANSWERS_US: u64 = 2_000_000;
/// What is owed to a peer is shown again after this long (us) until it has it.
pub const OWED_US: u64 = 1_000_000;
/// Values that are summed up in one step to know a shard's digest again, and about how long that takes, us.
pub const RECOUNT_ROWS: usize = 512;
/// See [`RECOUNT_ROWS`].
pub const RECOUNT_US: u64 = 1_000;
/// Inspections of shards at once, and those that wait to be begun.
pub const INSPECTIONS: usize = 8;
/// An inspection that nobody goes on with is given up after this long, us.
pub const INSPECT_PATIENCE_US: u64 = 10_000_000;
/// Rows that an inspection looks at in one step, and about how long that takes, us.
pub const INSPECT_ROWS: usize = 1_024;
/// See [`INSPECT_ROWS`].
pub const INSPECT_STEP_US: u64 = 2_000;
/// Shards that are verified for operators at once, and for each peer that asks: each holds a snapshot.
pub const VERIFICATIONS: usize = 8;
/// Rows that verifications look at in one step, together: some 1 ms, so that a million keys take 8 s and a quarter of a
/// core.
pub const VERIFY_ROWS: usize = 512;
/// Interval of these steps, us.
pub const VERIFY_STEP_US: u64 = 4_000;
/// Changes that one of two members has beyond the other while their other keys are still compared: their log is read at
/// once, some 10 ms.
pub const VERIFY_CHANGES: usize = 4_096;
/// Cells of a verification's sketch, some 55 KB: a thousand differences. Of more it looks at a part of the keys.
pub const VERIFY_CELLS: usize = 2_048;
/// Times that a comparison begins again, or tries with other cells, before it says what it knows.
pub const VERIFY_AGAIN: u32 = 3;
/// A question to a member, or its answer, is taken for lost after this long, us.
pub const VERIFY_RESEND_US: u64 = 3_000_000;
/// A snapshot that no peer asks about is kept for this long, us: as long as a call may last.
pub const VERIFY_PATIENCE_US: u64 = 60_000_000;
/// Keys that a verification names for a shard; a person reads them.
pub const VERIFIED_KEYS: usize = 100;
/// Origins that it names of whose changes a member lacks some.
pub const VERIFIED_ORIGINS: usize = 8;
/// Bytes of a reason or of other words about a key that it passes on.
pub const VERIFY_TEXT_BYTES: usize = 256;
/// States of keys that differ in one frame, bytes; the rest is found the next time.
pub const DIFFER_BYTES: usize = 2 * 1024 * 1024;
/// Vectors of a shard that were never shown equal for this long (us) do not keep its keys from being inspected.
pub const UNMET_US: u64 = 60_000_000;
/// A node that is ahead of most peers by this much (ms; 80 % of the max offset) takes no client writes.
pub const FENCE_OFFSET_MS: i64 = 400;
/// Interval of the sweep's steps, us, and the values it reads in each at least: a million keys take under an hour, for
/// less than one percent of a core.
pub const SWEEP_US: u64 = 200_000;
/// See [`SWEEP_US`].
pub const SWEEP_ROWS: usize = 64;
/// Values that it reads in as much time in its first round after a start, to know soon what has expired and what is
/// parked, and while there are expired keys to delete: a million keys take under four minutes, one percent of a core.
pub const FIRST_SWEEP_ROWS: usize = 1_024;
/// Values that one step of the scrub reads at most, and about how long that takes, us.
pub const SCRUB_STEP_ROWS: usize = 1_024;
/// See [`SCRUB_STEP_ROWS`].
pub const SCRUB_STEP_US: u64 = 2_000;
/// Bytes of values that one step reads at most, but for the last row: as long as [`SCRUB_STEP_US`].
pub const SCRUB_STEP_BYTES: usize = 2 * 1024 * 1024;
/// How long a round of the scrub takes at most, us: what rots is found within a day.
pub const SCRUB_WITHIN_US: u64 = 24 * 3_600_000_000;
/// How long it aims to take, us, while the foreground leaves room: four rounds a day, so that one that is broken off by
/// a restart costs little.
pub const SCRUB_AIM_US: u64 = 6 * 3_600_000_000;
/// How long it aims to take, us, at the floor of the pace: a sixth of a day is kept for what goes wrong.
pub const SCRUB_PRESSED_US: u64 = 20 * 3_600_000_000;
/// Most rows that the scrub reads in a second: a tenth of a core. 4 billion keys a day.
pub const SCRUB_ROWS_PER_SECOND: u64 = 50_000;
/// Most bytes that it reads in a second: 8.6 TB a day.
pub const SCRUB_BYTES_PER_SECOND: u64 = 100_000_000;
/// About how long it takes to take one change out of the log, us.
pub const TRIM_CHANGE_US: u64 = 3;
/// Buckets in which expiries are counted, some 32 bytes each; with more they get twice as wide.
pub const EXPIRY_BUCKETS: usize = 10_000;
/// Width of these buckets at first, ms: an expired key counts as visible for at most this long.
pub const EXPIRY_WIDTH_MS: u64 = 1_000;
/// Shards with parked keys that are named; some 200 bytes each. Keys of others are only counted.
pub const DEGRADED_SHARDS: usize = 1_000;
/// Changes put aside that one step of a retry or a drop takes on: at the largest, 64 MiB are read for it.
pub const PARKED_STEP_CHANGES: usize = 32;
/// Changes put aside that one answer describes; the others are counted.
pub const SHOWN_KEPT: usize = 256;
/// Bytes of changes put aside that are read to describe them, beyond one step.
pub const SHOWN_KEPT_BYTES: usize = 4 << 20;
/// Changes put aside that are counted of one key: some 100 ms.
pub const COUNTED_KEPT: usize = 100_000;
/// Keys with a dropped row that take no writes until the node starts again; some 600 bytes each at most.
pub const DROPPED_ROWS: usize = 10_000;
/// Changes that spoil a document which one step tries: after each the document is loaded again.
pub const SPOILED_TRIES: usize = 4;
/// Scopes with parked keys that a status names, and documents with long histories that are remembered.
pub const NAMED_IN_STATUS: usize = 100;
/// A history is long from this share of what its policy allows, percent.
pub const LONG_HISTORY_PERCENT: u64 = 80;
/// Changes that one step takes out of the log at most.
pub const TRIM_CHANGES: usize = 5_000;
/// What every member holds stays in the log this long for watchers that come back, ms ...
pub const LOG_KEEP_MS: u64 = 600_000;
/// ... but not while the log is larger than this, bytes, unless the node is configured otherwise.
pub const LOG_KEEP_BYTES: u64 = 256 << 20;
/// A request id is remembered this long, ms: longer than any client retries.
pub const REQUEST_KEEP_MS: u64 = 86_400_000;
/// One part in so many of the memory for caches keeps values as stored, the rest documents with their histories: a
/// document of 200 bytes takes 15 KiB, its value some 500 bytes.
pub const VALUES_CACHE_SHARE: usize = 8;
/// Cells of a sketch that members exchange first when digests differ: 7 KB tell a hundred differences.
pub const SKETCH_FIRST_CELLS: usize = 256;
/// Cells of one exchange at most: 1.7 MB on the wire and 2 MB in memory tell some 37 000 differences. Where more keys
/// differ, their states are so many bytes that finding which is the smaller part.
pub const SKETCH_CELLS: usize = 65_536;
/// Cells sent in one piece, at most 34 bytes each, some 26 in a large shard: about a frame of changes.
pub const SKETCH_PART_CELLS: usize = 8_192;
