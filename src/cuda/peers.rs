//! The communicators whose kernels reach into each other's memory: *push*, where the sender writes, and *pull*, where
//! the receiver reads. How, and why that is right, is told in `kernels/README.md`; here the kernels get their memory and
//! are launched. A call is one launch, or several where it does not fit the memory; nothing here waits for a kernel.

use std::{
    ffi::{c_uint, c_void},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    device::Device,
    directory::{self, Directory},
    driver::{self, LaunchAttribute, LaunchConfig, Uuid},
    kernels::{FIRST_WITH_DEPENDENTS, Kernel, REDUCED, SERVED, Way},
    lane::{Admitted, Lane, Line},
    memory::{self, Memory},
    params::{CLAIMED, LINE, Layout, MAX_THREADS, MAX_WORLD, MOST_BYTES, Params, UNSIGNED, VECTOR},
    pinned::page,
    sharing::{Sharing, say},
    thresholds::{Row, Table},
    verdict,
};
use crate::{
    bootstrap::{Members, mapping::Mapping, members::first_trouble, session::Session},
    communicator::{
        self, Algorithm, Call, Capabilities, Capture, Communicator, Descriptor, Pattern, Placement, Progress, Provider,
        Task,
    },
    config::{self, FLAG_REGISTERED},
    dtype::{Collective, DType, Op},
    error::{Error, Result},
};

/// What serves calls that are larger than its memory goes in pieces, so there is no limit but that of the rows.
const ALGORITHMS: [Algorithm; 2] = [
    Algorithm::new("one_shot", u64::MAX),
    Algorithm { only: Some(Collective::AllReduce), ..Algorithm::new("two_shot", u64::MAX) },
];
const TWO_SHOT: u8 = 1;

/// The longest time a kernel waits, where the caller wants none.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Bytes that a rank stages in one launch.
const STAGED: u64 = 16 << 20;
/// The unit of a push slot, in vectors.
const SLOT_UNIT: u64 = 64;

/// The sender writes.
pub struct Push;
/// The receiver reads.
pub struct Pull;

macro_rules! provider {
    ($provider:ty, $name:literal, $way:expr) => {
        impl Provider for $provider {
            fn name(&self) -> &'static str {
                $name
            }

            fn is_for_devices(&self) -> bool {
                true
            }

            fn algorithms(&self) -> &'static [Algorithm] {
                &ALGORITHMS
            }

            fn rows(&self, members: &Members, collective: Collective) -> Vec<communicator::Row> {
                let all = collective == Collective::AllReduce;
                table_for(members).map(|(table, arch)| table.plan(arch, members.size(), $way, all)).unwrap_or_default()
            }

            fn sources(&self, members: &Members) -> Vec<String> {
                table_for(members).map(|(table, arch)| table.sources(arch, members.size(), $way)).unwrap_or_default()
            }

            fn probe(&self, members: &Members) -> Result<Capabilities, String> {
                probe(members, $way)
            }

            fn create(&self, members: Arc<Members>, deadline: Option<Instant>) -> Task<Box<dyn Communicator>> {
                Box::pin(create(members, deadline, $way))
            }
        }
    };
}
provider!(Push, "push", Way::Push);
provider!(Pull, "pull", Way::Pull);

/// The table of thresholds, and the architecture of this rank's device.
fn table_for(members: &Members) -> Option<(&'static Table, u32)> {
    let device = Device::open(members.device()?).ok()?;
    Some((Table::get().ok()?, device.arch))
}

fn probe(members: &Members, way: Way) -> Result<Capabilities, String> {
    let ordinal = members.device().ok_or("the group's buffers are host memory")?;
    let device = Device::open(ordinal).map_err(|error| error.to_string())?;
    if !members.on_one_host() {
        return Err("the ranks are on several hosts".into());
    }
    if let Some(why) = members.unshared() {
        return Err(format!("no memory of the host could be shared: {why}"));
    }
    if members.size() as usize > MAX_WORLD {
        return Err(format!("the group has {} ranks, the kernels serve {MAX_WORLD}", members.size()));
    }
    let table = Table::get().map_err(|error| error.to_string())?;
    let rows = table.rows(device.arch, members.size(), way);
    let last = rows.last().ok_or_else(|| format!("no row of the thresholds is for sm_{}", device.arch))?;
    device.kernels().map_err(|error| error.to_string())?;
    let mut capabilities = Capabilities::new(&SERVED, &REDUCED, &[Op::Sum, Op::Max, Op::Min, Op::Avg]);
    capabilities.max_bytes = last.up_to;
    capabilities.placement = Placement::Both;
    capabilities.capture = Capture::Free;
    capabilities.rank_order = true;
    capabilities.cancellable_within_ms = Some(10);
    Ok(capabilities)
}

/// What every rank says of itself first.
#[derive(Serialize, Deserialize)]
struct Introduction {
    uuid: [u8; 16],
    arch: u32,
    exports: bool,
    /// Blocks that fit on the device at once.
    resident: u32,
    /// The most ranks that it knows to share its device, in this group and others.
    sharing: u32,
    /// NCCL_P2P_DISABLE is set.
    forbidden: bool,
}

async fn create(members: Arc<Members>, deadline: Option<Instant>, way: Way) -> Result<Box<dyn Communicator>> {
    let mut session = members.session(deadline, format!("device memory of group {:?}", members.name()));
    match create_in(&mut session, &members, deadline, way).await {
        // Whether all ranks managed is the dispatcher's next question.
        Ok(made) => session.finish().await.and(made).map(|made| Box::new(made) as Box<dyn Communicator>),
        Err(error) => {
            session.give_up(&error);
            Err(error)
        }
    }
}

/// The outer error is the session's, and ends the making of the group; the inner one only this communicator's.
async fn create_in(
    session: &mut Session,
    members: &Arc<Members>,
    deadline: Option<Instant>,
    way: Way,
) -> Result<Result<Communication>> {
    let device = match members.device().map(Device::open) {
        Some(Ok(device)) => device,
        Some(Err(error)) => return Err(error),
        None => return Err(Error::Internal("a group without a device wants device memory".into())),
    };
    let mine = Introduction {
        uuid: device.uuid.0,
        arch: device.arch,
        exports: device.exports,
        resident: device.kernels()?.resident(way),
        sharing: Lane::of(members, device).registry.sharing(),
        forbidden: verdict::is_forbidden(),
    };
    let all: Vec<Introduction> = say(session, &mine).await?;
    let world = members.size();
    if let Some(trouble) = judge(session, members, &all, deadline).await? {
        return Ok(Err(Error::Unsupported(trouble)));
    }
    let table = Table::get()?;
    let rows: Vec<Row> = table.rows(all[0].arch, world, way).into_iter().cloned().collect();
    let sharing = all.iter().filter(|one| one.uuid == mine.uuid).count() as u32;
    Lane::of(members, device).registry.note_sharing(sharing);
    warn_of_few_queues(device, members, &all);
    let layout = match layout(&all, &rows, way) {
        Ok(layout) => layout,
        Err(why) => return Ok(Err(Error::Unsupported(why))),
    };

    let directory = if way == Way::Pull { directory::BYTES } else { 0 };
    let bytes = layout.arena_bytes() + layout.state_bytes() + directory;
    let all_export = all.iter().all(|one| one.exports);
    let (sharing, arenas) = match Sharing::establish(members, session, device, all_export, bytes).await? {
        Ok(shared) => shared,
        Err(error) => return Ok(Err(error)),
    };
    let mapping = reports(session, members).await?;
    let ground = Ground { members: members.clone(), device, way, rows, layout, arenas, sharing };
    Ok(mapping.and_then(|mapping| Communication::new(ground, mapping)))
}

/// Why these devices may not reach into each other's memory, the same answer on all ranks.
async fn judge(
    session: &mut Session,
    members: &Members,
    all: &[Introduction],
    deadline: Option<Instant>,
) -> Result<Option<String>> {
    let mut devices: Vec<Uuid> = all.iter().map(|one| Uuid(one.uuid)).collect();
    devices.sort_unstable_by_key(|uuid| uuid.0);
    devices.dedup();
    if devices.len() == 1 {
        return Ok(None);
    }
    if let Some(rank) = all.iter().position(|one| one.forbidden) {
        return Ok(Some(format!("rank {rank}: NCCL_P2P_DISABLE forbids that devices reach each other's memory")));
    }
    let trouble = match members.rank() {
        0 => verdict::on(&devices, deadline).await.err().unwrap_or_default(),
        _ => String::new(),
    };
    let said = session.all_gather(trouble.as_bytes(), None).await?;
    Ok(said
        .first()
        .filter(|first| !first.body.is_empty())
        .map(|first| String::from_utf8_lossy(&first.body).into_owned()))
}

/// Ranks of one process that share a device have streams there, which the driver spreads over a few queues: a kernel behind
/// another rank's in one queue does not begin before that one ends, which may wait for it.
fn warn_of_few_queues(device: &Device, members: &Members, all: &[Introduction]) {
    const QUEUES: &str = "CUDA_DEVICE_MAX_CONNECTIONS";
    let process = |rank: usize| members.facts(rank as u32).process;
    let me = members.rank() as usize;
    let here = (0..all.len()).filter(|rank| all[*rank].uuid == all[me].uuid && process(*rank) == process(me)).count();
    let queues = config::variable(QUEUES).and_then(|value| value.parse().ok()).unwrap_or(8);
    // Each rank's stream, ours, and the legacy default stream.
    if here > 1 && here + 2 > queues {
        log::warn!(
            target: "tutti::cuda",
            "{here} ranks of this process share {device}, whose driver has {queues} queues for their streams: calls may \
             wait for each other until their deadlines; set {QUEUES}=32 before CUDA starts"
        );
    }
}

/// How the memory is divided, so that all blocks of all ranks on a device fit on it together, whichever of the groups
/// that are known they belong to.
fn layout(all: &[Introduction], rows: &[Row], way: Way) -> Result<Layout, String> {
    let world = all.len() as u32;
    let sharing = |one: &Introduction| {
        let here = all.iter().filter(|other| other.uuid == one.uuid);
        here.clone().map(|other| other.sharing).max().unwrap_or(0).max(here.count() as u32)
    };
    let fitting = all.iter().map(|one| one.resident / sharing(one)).min().unwrap_or(0);
    let wanted = rows.iter().map(|row| row.blocks).max().unwrap_or(0);
    let blocks = fitting.min(wanted);
    if blocks == 0 {
        let most = all.iter().map(sharing).max().unwrap_or(0);
        return Err(format!("{most} ranks share a device, on which their kernels do not fit together"));
    }
    let per_block = |bytes: u64, ranks: u32, blocks: u32| {
        bytes.div_ceil(VECTOR).div_ceil(u64::from(ranks)).div_ceil(u64::from(blocks))
    };
    let push = rows.iter().map(|row| match row.is_two_shot() {
        true => 2 * per_block(row.up_to, world, row.blocks.min(blocks)),
        false => per_block(row.up_to, 1, row.blocks.min(blocks)),
    });
    let push = push.max().unwrap_or(0).next_multiple_of(SLOT_UNIT);
    let (push_vectors, stage_vectors) = match way {
        Way::Push => (push as u32, 0),
        Way::Pull => (0, per_block(STAGED, 1, blocks).next_multiple_of(u64::from(world)) as u32),
    };
    // Kernels count the lines of a block in one epoch in 32 bits (`params.h`).
    let push_bytes = push.saturating_mul(2 * u64::from(world) * LINE);
    if way == Way::Push && push_bytes >= 1 << 32 {
        return Err(format!("rows that are pushed want {push} vectors for each block and rank, which is too much"));
    }
    Ok(Layout { world, blocks, push_vectors, stage_vectors })
}

/// The memory of the host through which hosts and kernels hear of each other: a page for each rank.
async fn reports(session: &mut Session, members: &Members) -> Result<Result<Arc<Mapping>>> {
    let bytes = page() * members.size() as usize;
    let made: Result<Option<OwnedFd>> = match members.rank() {
        0 => {
            Mapping::create("tutti-reports", bytes).and_then(|fd| Mapping::commit(&fd, 0, bytes).map(|()| fd)).map(Some)
        }
        _ => Ok(None),
    };
    let trouble = made.as_ref().err().map(Error::to_string).unwrap_or_default();
    let descriptor = made.as_ref().ok().and_then(Option::as_ref);
    let said = session.all_gather(trouble.as_bytes(), descriptor).await?;
    if let Some(trouble) = first_trouble(members.world_ranks(), &said) {
        return Ok(Err(Error::Unsupported(trouble)));
    }
    let passed = descriptor.or_else(|| said.first().and_then(|message| message.descriptors.first()));
    Ok(passed.ok_or_else(|| Error::Internal("no descriptor came".into())).and_then(|fd| Mapping::open(fd, bytes)))
}

/// One rank's communicator.
struct Communication {
    members: Arc<Members>,
    lane: Arc<Lane>,
    way: Way,
    rows: Vec<Row>,
    layout: Layout,
    /// What all calls have in common.
    params: Params,
    /// Where registered memory is; pushed data goes through slots, wherever it lies.
    directory: Option<Arc<Directory>>,
    held: Option<Held>,
}

/// What a communicator is made of.
struct Ground {
    members: Arc<Members>,
    device: &'static Device,
    way: Way,
    rows: Vec<Row>,
    layout: Layout,
    /// By rank: arena, then state, then the table of registered memory.
    arenas: Vec<Arc<Memory>>,
    sharing: Sharing,
}

/// What kernels use, parked when the communicator goes.
struct Held {
    _arenas: Vec<Arc<Memory>>,
    _page: Page,
}

impl Communication {
    fn new(ground: Ground, mapping: Arc<Mapping>) -> Result<Self> {
        let Ground { members, device, way, rows, layout, arenas, sharing } = ground;
        let (rank, world) = (members.rank(), members.size());
        let page = Page::register(device, mapping.clone(), rank)?;
        let own = &arenas[rank as usize];
        let mut params = Params {
            state: own.address() + layout.arena_bytes(),
            report: page.address,
            push_at: layout.push_at(),
            stage_at: layout.stage_at(),
            rank,
            world,
            group: members.uid() as u32,
            push_vectors: layout.push_vectors,
            stage_vectors: layout.stage_vectors,
            blocks: layout.blocks,
            ..Params::default()
        };
        for (arena, memory) in params.arena.iter_mut().zip(&arenas) {
            *arena = memory.address();
        }
        let lane = Lane::of(&members, device);
        lane.keep_off(params.state + CLAIMED, params.arena[rank as usize]);
        let name = if way == Way::Push { "push" } else { "pull" };
        lane.set_line(way, Line::new(name, mapping, rank, world));
        let directory = match way {
            Way::Push => None,
            Way::Pull => {
                let at = layout.arena_bytes() + layout.state_bytes();
                let directory = Arc::new(Directory::new(device, members.world_ranks(), sharing, own.clone(), at));
                lane.registry.join(&directory)?;
                params.table = directory.address();
                lane.set_directory(&directory);
                Some(directory)
            }
        };
        let held = Some(Held { _arenas: arenas, _page: page });
        Ok(Communication { members, lane, way, rows, layout, params, directory, held })
    }

    /// Launches the pieces of a call.
    fn launch(&self, admitted: &mut Admitted, call: &Call, algorithm: u8) -> Result<()> {
        let descriptor = &call.descriptor;
        // The row by size, for the shape of the launch; the algorithm may be one that a user has put in its place.
        let bytes = descriptor.contribution(self.layout.world);
        let row = self.rows.iter().find(|row| bytes <= row.up_to).or(self.rows.last());
        let row = row.ok_or_else(|| Error::Internal("a group without thresholds".into()))?;
        let dtype = if descriptor.collective == Collective::Barrier { DType::Float32 } else { descriptor.dtype };
        let two_shot = algorithm == TWO_SHOT;
        let kernel = self.lane.device.kernels()?.of(descriptor.collective, dtype, self.way, two_shot);
        let kernel = kernel.ok_or_else(|| Error::Internal(format!("there is no kernel for {descriptor}")))?;
        let patience = call.timeout.duration().map_or(LONGEST, |patience| patience.min(LONGEST));
        self.lane.set_patience(patience);
        let mut params = Params {
            stride: descriptor.bytes() as u64,
            timeout_ns: (patience.as_nanos() as u64).max(1),
            op: operation(descriptor),
            root: descriptor.root,
            ..self.params
        };
        let (send_at, recv_at) = self.locate(call);
        for piece in pieces(&self.layout, descriptor, self.way, two_shot) {
            params.send = call.send as u64 + piece.offset;
            params.recv = call.recv as u64 + piece.offset;
            params.send_at = further(send_at, piece.offset);
            params.recv_at = further(recv_at, piece.offset);
            params.bytes = piece.bytes;
            let grid = grid(&self.layout, row, &piece);
            self.launch_one(admitted, kernel, &mut params, grid, row.threads, call.stream)?;
        }
        Ok(())
    }

    /// Where peers find this rank's buffers, where they are registered.
    fn locate(&self, call: &Call) -> (u64, u64) {
        let Some(directory) = &self.directory else { return (0, 0) };
        let descriptor = &call.descriptor;
        let send = descriptor.contribution(self.layout.world);
        // Results are read by peers in an all_reduce by two shots alone.
        let recv = if descriptor.collective == Collective::AllReduce { send } else { 0 };
        (directory.locate(call.send as u64, send), directory.locate(call.recv as u64, recv))
    }

    /// Whether a kernel may be launched while the one before it ends. Drivers before 12.3 cannot say so in a graph.
    fn may_begin_early(&self, admitted: &Admitted) -> bool {
        let device = self.lane.device;
        device.arch >= FIRST_WITH_DEPENDENTS && (!admitted.captured || device.driver.version() >= 12030)
    }

    fn launch_one(
        &self,
        admitted: &mut Admitted,
        kernel: &Kernel,
        params: &mut Params,
        grid: u32,
        threads: u32,
        stream: driver::Stream,
    ) -> Result<()> {
        let mut value = [0; 16];
        value[0] = 1;
        let early = LaunchAttribute { id: driver::LAUNCH_PROGRAMMATIC, padding: 0, value };
        let config = LaunchConfig {
            grid: [grid, 1, 1],
            block: [threads as c_uint, 1, 1],
            shared_bytes: 0,
            stream,
            attributes: &raw const early,
            attribute_count: c_uint::from(self.may_begin_early(admitted)),
        };
        let mut arguments = [(params as *mut Params).cast::<c_void>()];
        let arguments = arguments.as_mut_ptr();
        // SAFETY: the kernel takes one `Params` by value, which the driver copies; the buffers are the caller's and of
        // this device, everything else in it lives until it is parked.
        let launched = self.lane.call(admitted, |driver| unsafe {
            driver.launch_kernel_ex(&config, kernel.function, arguments, std::ptr::null_mut())
        });
        launched.map_err(|error| error.during(format_args!("a launch on {}", self.lane.device)))
    }
}

impl Communicator for Communication {
    fn start(&mut self, call: &Call, _sequence: u64, way: communicator::Way) -> Result<Progress> {
        let mut admitted = self.lane.take()?;
        if self.members.size() == 1 {
            copy(&self.lane, &mut admitted, call)?;
        } else {
            self.launch(&mut admitted, call, way.algorithm)?;
        }
        self.lane.finish(admitted, call.stream, call.descriptor.digest())?;
        Ok(Progress::Done)
    }

    fn poll(&mut self) -> Result<Progress> {
        Ok(Progress::Done)
    }

    fn rest(&mut self, _: Duration) {}

    fn awaits(&mut self, _: u32) -> bool {
        false
    }
}

impl Drop for Communication {
    /// Kernels may still run: what they use is parked.
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        memory::park(Box::new(held));
    }
}

/// A rank's page of the reports, as its device sees it.
struct Page {
    device: &'static Device,
    mapping: Arc<Mapping>,
    rank: u32,
    address: driver::Address,
}

impl Page {
    fn register(device: &'static Device, mapping: Arc<Mapping>, rank: u32) -> Result<Self> {
        let _entered = device.enter()?;
        let host = mapping.at(rank as usize * page(), page()).as_ptr().cast();
        let mut address = 0;
        // SAFETY: the page is mapped until the value is dropped, and registered once: each rank has its own.
        unsafe {
            device.driver.mem_host_register(host, page(), driver::HOST_PORTABLE_MAPPED).and_then(|()| {
                let found = device.driver.mem_host_get_device_pointer(&mut address, host, 0);
                found.inspect_err(|_| drop(device.driver.mem_host_unregister(host)))
            })
        }
        .map_err(|error| error.during(format_args!("host memory for {device}")))?;
        Ok(Page { device, mapping, rank, address })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let Ok(_entered) = self.device.enter() else { return };
        let host = self.mapping.at(self.rank as usize * page(), page()).as_ptr().cast();
        // SAFETY: it was registered, and no kernel uses it any more (see `memory::park`).
        let _ = unsafe { self.device.driver.mem_host_unregister(host) };
    }
}

/// A part of a call that is launched at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// Where it begins, in a buffer or in each rank's part.
    offset: u64,
    bytes: u64,
    /// What the blocks of a rank share out among themselves.
    vectors: u64,
    /// What a block can take of it.
    per_block: u64,
}

/// The blocks of a launch: as many as the piece fills, no more than the row wants and the device holds, and no fewer than
/// have room for it, which is never more than there are.
fn grid(layout: &Layout, row: &Row, piece: &Piece) -> u32 {
    let most = row.blocks.min(layout.blocks);
    let filled = piece.vectors.div_ceil(u64::from(row.threads)).clamp(1, u64::from(most));
    filled.max(piece.vectors.div_ceil(piece.per_block)) as u32
}

/// A location `offset` bytes on; what is nowhere stays there.
fn further(location: u64, offset: u64) -> u64 {
    if location == 0 { 0 } else { location + offset }
}

/// The pieces of a call: as large as the memory allows, the last one what is left. One piece for a call of nothing.
/// All ranks cut alike; so where a rank's own memory is does not matter, but a promise that all have registered theirs
/// does: nobody then needs the stage, but for one-shot sums, which stage in place.
fn pieces(layout: &Layout, call: &Descriptor, way: Way, two_shot: bool) -> impl Iterator<Item = Piece> {
    let world = u64::from(layout.world);
    let (slot, stage) = (u64::from(layout.push_vectors), u64::from(layout.stage_vectors));
    let per_block = match (way, two_shot) {
        (Way::Push, false) => slot,
        (Way::Push, true) => slot / 2,
        (Way::Pull, false) if call.collective != Collective::ReduceScatter => stage,
        (Way::Pull, _) => stage / world,
    };
    let shares = if two_shot { world } else { 1 };
    let stages = call.flags & FLAG_REGISTERED == 0 || call.collective == Collective::AllReduce && !two_shot;
    let (per_block, most) = match way == Way::Push || stages {
        true => (per_block.max(1), (per_block * u64::from(layout.blocks) * shares * VECTOR).max(VECTOR)),
        false => (u64::MAX, MOST_BYTES),
    };
    let total = call.bytes() as u64;
    let count = total.div_ceil(most).max(1);
    (0..count).map(move |index| {
        let offset = index * most;
        let bytes = most.min(total - offset);
        let vectors = bytes.div_ceil(VECTOR).max(1).div_ceil(shares);
        Piece { offset, bytes, vectors, per_block }
    })
}

/// The operation as the kernels have it.
fn operation(call: &Descriptor) -> u32 {
    let unsigned = matches!(call.dtype, DType::Uint8 | DType::Uint32 | DType::Uint64);
    call.op as u32 | if unsigned { UNSIGNED } else { 0 }
}

/// A group of one rank: its contribution is the result.
pub(super) fn copy(lane: &Lane, admitted: &mut Admitted, call: &Call) -> Result<()> {
    let Some(pattern) = Pattern::new(&call.descriptor, 0, 1) else { return Ok(()) };
    let bytes = pattern.send_bytes(0).min(pattern.recv_bytes(1));
    if bytes == 0 || std::ptr::eq(call.send, call.recv) {
        return Ok(());
    }
    // SAFETY: both buffers are the caller's and as long as the call says.
    lane.call(admitted, |driver| unsafe { driver.memcpy_async(call.recv as u64, call.send as u64, bytes, call.stream) })
        .map_err(|error| error.during(format_args!("a copy on {}", lane.device)))
}

const _: () = assert!(MAX_THREADS >= MAX_WORLD as u32);

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(device: u8, resident: u32, sharing: u32) -> Introduction {
        Introduction { uuid: [device; 16], arch: 90, exports: true, resident, sharing, forbidden: false }
    }

    fn rows(text: &'static str) -> Vec<Row> {
        let table = Table::parse("mine", text.into()).unwrap();
        table.rows(90, 2, Way::Push).into_iter().cloned().collect()
    }

    #[test]
    fn ranks_that_share_a_device_have_no_more_blocks_than_fit_there_together() {
        let rows = rows("90 2 push/one_shot 1 MiB 32 256 x");
        let blocks = |all: &[Introduction]| layout(all, &rows, Way::Push).map(|layout| layout.blocks);
        assert_eq!(blocks(&[rank(0, 100, 0), rank(1, 100, 0)]), Ok(32));
        assert_eq!(blocks(&[rank(0, 40, 0), rank(0, 40, 0)]), Ok(20));
        assert_eq!(blocks(&[rank(0, 40, 0), rank(1, 7, 0)]), Ok(7), "the smaller device decides for all");
        assert_eq!(blocks(&[rank(0, 40, 8), rank(0, 40, 8)]), Ok(5), "eight share it, two of which are here");
        assert_eq!(blocks(&[rank(0, 40, 8), rank(0, 40, 0)]), Ok(5), "if only one of them knows, too");
        let refused = blocks(&[rank(0, 40, 41), rank(0, 40, 0)]).unwrap_err();
        assert!(refused.starts_with("41 ranks share a device"), "{refused}");
    }

    #[test]
    fn a_launch_has_the_blocks_that_its_row_wants_where_the_device_has_them() {
        let rows = rows("90 2 push/one_shot 64 KiB 2 256 x\n90 2 push/one_shot 1 MiB 32 256 x");
        let grids = |resident: u32| {
            let layout = layout(&[rank(0, resident, 0), rank(1, resident, 0)], &rows, Way::Push).unwrap();
            let grid_of = |row: usize, bytes: u64| {
                let call = Descriptor { collective: Collective::AllReduce, count: bytes, ..Descriptor::BARRIER };
                let all: Vec<Piece> = pieces(&layout, &call, Way::Push, false).collect();
                assert_eq!(all.len(), 1, "{bytes} bytes go at once");
                grid(&layout, &rows[row], &all[0])
            };
            [grid_of(0, 0), grid_of(0, 8 << 10), grid_of(0, 64 << 10), grid_of(1, 64 << 10), grid_of(1, 1 << 20)]
        };
        assert_eq!(grids(64), [1, 2, 2, 16, 32]);
        assert_eq!(grids(7), [1, 2, 2, 7, 7]);
    }

    #[test]
    fn slots_that_kernels_cannot_count_are_refused() {
        let all = [rank(0, 64, 0), rank(1, 64, 0)];
        let fits = rows("90 2 push/one_shot 512 MiB 32 256 x");
        assert!(layout(&all, &fits, Way::Push).is_ok());
        let too_large = rows("90 2 push/one_shot 1024 MiB 1 256 x");
        assert!(layout(&all, &too_large, Way::Push).unwrap_err().contains("too much"));
    }
}
