//! What host and kernels agree on: the structs of `kernels/params.h`, byte for byte, and the layout of an arena.

/// Ranks of a group at most.
pub(super) const MAX_WORLD: usize = 16;
/// Bytes that one thread moves at once.
pub(super) const VECTOR: u64 = 16;
/// Threads of a block at most.
pub(super) const MAX_THREADS: u32 = 256;
/// Bytes of one launch at most.
pub(super) const MOST_BYTES: u64 = 1 << 35;
/// Above the offset of a location: the row of the table in which every rank has that buffer.
pub(super) const LOCATION_SLOT_SHIFT: u32 = 48;
/// Beside an operation: the integers are unsigned.
pub(super) const UNSIGNED: u32 = 0x100;
/// The order that ends every wait; the lower bits name ranks that nobody shall wait for.
pub(super) const STOP: u64 = 1 << 63;

/// In a rank's state: whether its first failure has been told, a u32.
pub(super) const CLAIMED: u64 = 8;
/// A failure's kind: told to stop.
pub(super) const ABORTED: u8 = 2;

/// Sizes of the structs that the host only lays out.
const ARENA: u64 = 128;
const BOARD: u64 = 640;
pub(super) const LINE: u64 = 16;
const STATE: u64 = 64;
const TURN: u64 = 32;

/// The argument of every kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Params {
    pub(super) arena: [u64; MAX_WORLD],
    pub(super) state: u64,
    pub(super) report: u64,
    pub(super) table: u64,
    pub(super) send: u64,
    pub(super) recv: u64,
    pub(super) bytes: u64,
    pub(super) stride: u64,
    pub(super) send_at: u64,
    pub(super) recv_at: u64,
    pub(super) timeout_ns: u64,
    pub(super) push_at: u64,
    pub(super) stage_at: u64,
    pub(super) rank: u32,
    pub(super) world: u32,
    pub(super) op: u32,
    pub(super) root: u32,
    pub(super) group: u32,
    pub(super) push_vectors: u32,
    pub(super) stage_vectors: u32,
    pub(super) blocks: u32,
}

const _: () = assert!(size_of::<Params>() == 16 * 8 + 12 * 8 + 8 * 4);

/// Where the fields of a report are, in bytes; all but the orders are 4 bytes long.
pub(super) mod report {
    pub(in crate::cuda) const ORDERS: usize = 0;
    pub(in crate::cuda) const WRITTEN: usize = 64;
    pub(in crate::cuda) const KIND: usize = 68;
    pub(in crate::cuda) const MISSING: usize = 72;
    pub(in crate::cuda) const REPORTER: usize = 76;
    pub(in crate::cuda) const SEQUENCE: usize = 80;
}

/// How a group's memory is divided, the same on all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Ranks.
    pub(super) world: u32,
    /// Blocks of a launch at most.
    pub(super) blocks: u32,
    /// Vectors of a push slot, a multiple of 64; 0: nothing is pushed.
    pub(super) push_vectors: u32,
    /// Vectors that a block stages; 0: nothing is pulled.
    pub(super) stage_vectors: u32,
}

impl Layout {
    /// Where the slots begin.
    pub(super) fn push_at(&self) -> u64 {
        ARENA + u64::from(self.blocks) * 2 * BOARD
    }

    /// Where the stage begins.
    pub(super) fn stage_at(&self) -> u64 {
        let lines = 2 * u64::from(self.push_vectors) * u64::from(self.world);
        self.push_at() + u64::from(self.blocks) * 2 * lines * LINE
    }

    /// Bytes of an arena.
    pub(super) fn arena_bytes(&self) -> u64 {
        self.stage_at() + u64::from(self.blocks) * 2 * u64::from(self.stage_vectors) * VECTOR
    }

    /// Bytes of a rank's own state.
    pub(super) fn state_bytes(&self) -> u64 {
        STATE + u64::from(self.blocks) * TURN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of a struct of the header, in order, with arrays and widths left out.
    fn fields_in_header(name: &str) -> Vec<String> {
        let header = include_str!("kernels/params.h");
        let body = &header[header.find(&format!("{name} {{")).unwrap()..];
        let body = &body[..body.find("\n};").unwrap()];
        let lines = body.lines().map(str::trim).filter(|line| !line.starts_with("//") && line.ends_with(';'));
        lines.map(|line| line.trim_end_matches(';').split([' ', '[']).nth(1).unwrap().to_owned()).collect()
    }

    #[test]
    fn the_argument_has_the_fields_of_the_header_in_its_order() {
        let source = include_str!("params.rs");
        let body = &source[source.find("pub(super) struct Params {").unwrap()..];
        let ours: Vec<_> = body[..body.find("\n}").unwrap()]
            .lines()
            .filter_map(|line| Some(line.trim().strip_prefix("pub(super) ")?.split(':').next()?.to_owned()))
            .filter(|field| !field.starts_with("struct"))
            .collect();
        assert_eq!(ours, fields_in_header("struct Params"));
        let report = fields_in_header("struct alignas(64) Report");
        assert_eq!(report[..6], ["orders", "unused_", "written", "kind", "missing", "reporter"]);
    }

    #[test]
    fn an_arena_has_room_for_all_its_parts() {
        let layout = Layout { world: 8, blocks: 4, push_vectors: 64, stage_vectors: 100 };
        assert_eq!(layout.push_at(), 128 + 8 * 640);
        assert_eq!(layout.stage_at() - layout.push_at(), 4 * 2 * 8 * 2 * 64 * 16);
        assert_eq!(layout.arena_bytes() - layout.stage_at(), 4 * 2 * 100 * 16);
        assert_eq!(layout.stage_at() % 128, 0);
    }
}
