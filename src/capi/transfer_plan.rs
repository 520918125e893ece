//! Plans of mesh-to-mesh transfers: making them, and looking into them.
//!
//! Descriptions are parsed into the types of `transfer::layout`, which refuse what does not add up; everything else
//! calls one method of `Plan`.

use std::{collections::HashMap, ffi::c_char, slice, sync::Arc};

use super::{
    guard::guard,
    handles::{Entry, Table, destroy},
    parse::{Out, Versioned, clear, read_optional_struct, read_struct, text, write_struct, write_text},
    transfer_types::*,
    types::*,
};
use crate::{
    dtype::{DType, Op},
    error::{Error, Result},
    transfer::{Format, Item, Layout, Mesh, Options, Placement, Plan, Side, Split},
};

/// The plans that C has handles of.
pub(super) static PLANS: Table<Arc<Plan>> = Table::new();

impl Entry for Arc<Plan> {
    type Handle = tutti_transfer_plan;
    const KIND: u8 = b'M';
    const NAME: &'static str = "transfer plan";

    fn retire(&self) {}
}

/// Plans how tensors get from one layout to another. Local and pure: every rank that passes the same gets the same.
///
/// items[0] to items[count - 1]: the tensors; names, layouts, meshes and everything they point to are read before the
/// function returns and never after. size: ranks of the group that will carry the plan out; meshes name its ranks.
/// options: NULL for the defaults. *plan gets a handle that the caller must destroy with tutti_transfer_plan_destroy,
/// NULL on failure. Takes no group, moves nothing; any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (a description that does not add up, naming the tensor);
/// TUTTI_UNSUPPORTED (a target that is Partial, a cast between types that are not both floats, more than 8388608
/// chunks); TUTTI_OUT_OF_MEMORY; TUTTI_INVALID_USAGE (forked process); TUTTI_INTERNAL_ERROR.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_plan_create(
    items: *const tutti_transfer_item_t,
    count: usize,
    size: i32,
    options: *const tutti_transfer_options_t,
    plan: *mut *mut tutti_transfer_plan_t,
) -> tutti_status_t {
    // SAFETY: the C caller promises that plan is NULL or writable.
    unsafe { clear(plan) };
    guard("tutti_transfer_plan_create", || {
        // SAFETY: as above.
        let plan = unsafe { Out::new("plan", plan) }?;
        // SAFETY: the C caller promises that options is NULL or a struct as large as it says.
        let options = unsafe { read_optional_struct(options) }?;
        let options = Options {
            world: u32::try_from(size).map_err(|_| Error::invalid(format_args!("size is {size}")))?,
            bucket_bytes: options.bucket_bytes,
            staging_bytes: options.staging_bytes,
            in_flight: options.in_flight,
            split_bytes: options.split_bytes,
        };
        // SAFETY: the C caller promises `count` items, with all they point to.
        let items = unsafe { parse_items(items, count) }?;
        plan.write(PLANS.insert(Arc::new(Plan::new(&items, &options)?))?);
        Ok(())
    })
}

/// Frees a plan. Transfers made of it go on; records of it are gone. Destroying NULL or a destroyed plan succeeds.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a plan); TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_transfer_plan_destroy(plan: *mut tutti_transfer_plan_t) -> tutti_status_t {
    guard("tutti_transfer_plan_destroy", || destroy(&PLANS, plan))
}

/// Writes the 16 bytes that tell plans apart: equal where layouts, options and everything in the plan are. Names,
/// strides and memory are not part of it. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_plan_hash(plan: *const tutti_transfer_plan_t, hash: *mut u8) -> tutti_status_t {
    guard("tutti_transfer_plan_hash", || {
        let plan = PLANS.pin(plan)?;
        // SAFETY: the C caller promises 16 writable bytes at hash where it is not NULL.
        unsafe { Out::new("hash", hash.cast::<[u8; 16]>()) }?.write(plan.hash());
        Ok(())
    })
}

/// Writes what the plan does in all. Any thread. Set totals->struct_size before (TUTTI_TRANSFER_TOTALS_INIT does).
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_plan_totals(
    plan: *const tutti_transfer_plan_t,
    totals: *mut tutti_transfer_totals_t,
) -> tutti_status_t {
    guard("tutti_transfer_plan_totals", || {
        let plan = PLANS.pin(plan)?;
        let all = plan.totals();
        let [p2p_buckets, broadcast_buckets, local_buckets, reduce_buckets] = all.by_transport;
        let numbers = tutti_transfer_totals {
            struct_size: size_of::<tutti_transfer_totals>(),
            items: all.items,
            ranks: plan.ranks().len() as u64,
            chunks: all.chunks,
            buckets: all.buckets,
            p2p_buckets,
            broadcast_buckets,
            local_buckets,
            reduce_buckets,
            groups: all.groups,
            wire: all.wire,
            wire_bound: all.wire_bound,
            injected: all.injected,
            injection_bound: all.injection_bound,
            reduced: all.reduced,
            reduce_bound: all.reduce_bound,
            local: all.local,
            largest_send: all.largest_send,
            send_bound: all.send_bound,
            largest_receive: all.largest_receive,
            receive_bound: all.receive_bound,
            staging: all.staging,
            staging_cap: all.staging_cap,
            in_flight: all.in_flight,
        };
        // SAFETY: the C caller promises that totals is NULL or a writable struct as large as it says.
        unsafe { write_struct(totals, &numbers) }
    })
}

/// Writes what one rank does; any rank's, from anywhere. All zero for one that takes no part. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_plan_load(
    plan: *const tutti_transfer_plan_t,
    rank: i32,
    load: *mut tutti_transfer_load_t,
) -> tutti_status_t {
    guard("tutti_transfer_plan_load", || {
        let plan = PLANS.pin(plan)?;
        let found = plan.load(parse_rank(&plan, rank)?).copied().unwrap_or_default();
        let numbers = tutti_transfer_load {
            struct_size: size_of::<tutti_transfer_load>(),
            operations: found.operations,
            sent: found.sent,
            received: found.received,
            receive_bound: found.receive_bound,
            local: found.local,
            reduce_sent: found.reduce_sent,
            reduce_received: found.reduce_received,
            staging: found.staging,
        };
        // SAFETY: the C caller promises that load is NULL or a writable struct as large as it says.
        unsafe { write_struct(load, &numbers) }
    })
}

/// Writes one chunk: index 0 to chunks - 1 of tutti_transfer_plan_totals, those of one bucket one after the other.
///
/// rank: whose is_source and is_target are wanted; any rank, from anywhere. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_plan_chunk(
    plan: *const tutti_transfer_plan_t,
    index: usize,
    rank: i32,
    chunk: *mut tutti_transfer_chunk_t,
) -> tutti_status_t {
    guard("tutti_transfer_plan_chunk", || {
        let plan = PLANS.pin(plan)?;
        let rank = parse_rank(&plan, rank)?;
        let found = plan.chunk(index).ok_or_else(|| beyond("chunk", index, plan.chunk_count()))?;
        let record = tutti_transfer_chunk {
            struct_size: size_of::<tutti_transfer_chunk>(),
            item: found.item,
            bucket: found.bucket,
            transport: found.transport as i32,
            source: found.source as i32,
            is_source: found.is_source(rank).into(),
            is_target: found.is_target(rank).into(),
            targets: found.targets.as_ptr().cast(),
            target_count: found.targets.len(),
            contributors: found.contributors.as_ptr().cast(),
            contributor_count: found.contributors.len(),
            start: found.start.as_ptr(),
            extent: found.extent.as_ptr(),
            dim_count: found.extent.len(),
            bytes: found.bytes,
            offset: found.offset,
            reduced_bucket: found.reduced.map_or(-1, |(bucket, _)| bucket as i64),
            reduced_offset: found.reduced.map_or(0, |(_, offset)| offset),
            dtype: found.dtype as i32,
        };
        // SAFETY: the C caller promises that chunk is NULL or a writable struct as large as it says.
        unsafe { write_struct(chunk, &record) }
    })
}

/// Writes one bucket: index 0 to buckets - 1 of tutti_transfer_plan_totals, in the one order in which every rank goes
/// through its own. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_plan_bucket(
    plan: *const tutti_transfer_plan_t,
    index: usize,
    bucket: *mut tutti_transfer_bucket_t,
) -> tutti_status_t {
    guard("tutti_transfer_plan_bucket", || {
        let plan = PLANS.pin(plan)?;
        let found = plan.bucket(index).ok_or_else(|| beyond("bucket", index, plan.bucket_count()))?;
        let (members, blocks) = found.round.map_or((&[][..], &[][..]), |round| (round.members, round.blocks));
        let record = tutti_transfer_bucket {
            struct_size: size_of::<tutti_transfer_bucket>(),
            transport: found.transport as i32,
            source: found.source as i32,
            targets: found.targets.as_ptr().cast(),
            target_count: found.targets.len(),
            bytes: found.bytes,
            first_chunk: found.chunks.0,
            chunk_count: found.chunks.1 - found.chunks.0,
            after: found.after.map_or(-1, |bucket| bucket as i64),
            members: members.as_ptr().cast(),
            member_count: members.len(),
            blocks: blocks.as_ptr(),
        };
        // SAFETY: the C caller promises that bucket is NULL or a writable struct as large as it says.
        unsafe { write_struct(bucket, &record) }
    })
}

/// Writes which bucket is a rank's operation number `index`, 0 to operations - 1 of tutti_transfer_plan_load. Any
/// rank's, from anywhere; any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_plan_operation(
    plan: *const tutti_transfer_plan_t,
    rank: i32,
    index: usize,
    bucket: *mut usize,
) -> tutti_status_t {
    guard("tutti_transfer_plan_operation", || {
        let plan = PLANS.pin(plan)?;
        let operations = plan.operations(parse_rank(&plan, rank)?);
        let found = operations.get(index).ok_or_else(|| beyond("operation", index, operations.len()))?;
        // SAFETY: the C caller promises that a bucket which is not NULL is writable.
        unsafe { Out::new("bucket", bucket) }?.write(*found as usize);
        Ok(())
    })
}

/// Writes which box of a tensor a rank holds (or contributes to): what memory for tutti_transfer_bind is needed.
///
/// side: TUTTI_SOURCE or TUTTI_TARGET. start, extent: room for the tensor's dimensions each, or NULL. *elements gets
/// the elements of the box, 0 also where the rank is not in the mesh; NULL if not wanted. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_plan_region(
    plan: *const tutti_transfer_plan_t,
    item: usize,
    side: i32,
    rank: i32,
    start: *mut u64,
    extent: *mut u64,
    elements: *mut u64,
) -> tutti_status_t {
    guard("tutti_transfer_plan_region", || {
        let plan = PLANS.pin(plan)?;
        if item >= plan.item_count() {
            return Err(beyond("tensor", item, plan.item_count()));
        }
        let region = plan.region(item, parse_side(side)?, parse_rank(&plan, rank)?);
        let dims = plan.shape(item).len();
        let none = vec![0; dims];
        let (starts, extents) = match &region {
            Some(region) => (&region.start, &region.extent),
            None => (&none, &none),
        };
        for (from, to) in [(starts, start), (extents, extent)] {
            if !to.is_null() {
                // SAFETY: the C caller promises room for the tensor's dimensions.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, dims) };
            }
        }
        if !elements.is_null() {
            // SAFETY: the C caller promises that elements is NULL or writable.
            unsafe { elements.write(region.map_or(0, |region| region.elements())) };
        }
        Ok(())
    })
}

/// Writes the plan for people and programs: TUTTI_FORMAT_TEXT a table, TUTTI_FORMAT_JSON one object, TUTTI_FORMAT_SVG
/// a picture of who sends how much to whom.
///
/// rank: -1 for the whole plan; a rank with TUTTI_FORMAT_TEXT for its operations. text, capacity, needed: see "Texts"
/// at the top of this header. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_transfer_plan_report(
    plan: *const tutti_transfer_plan_t,
    rank: i32,
    format: i32,
    text: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> tutti_status_t {
    guard("tutti_transfer_plan_report", || {
        let plan = PLANS.pin(plan)?;
        let report = match (format, rank) {
            (TUTTI_FORMAT_TEXT, -1) => plan.report(Format::Text),
            (TUTTI_FORMAT_JSON, -1) => plan.report(Format::Json),
            (TUTTI_FORMAT_SVG, -1) => plan.report(Format::Svg),
            (TUTTI_FORMAT_TEXT, rank) => plan.report_rank(parse_rank(&plan, rank)?),
            (TUTTI_FORMAT_JSON | TUTTI_FORMAT_SVG, _) => {
                return Err(Error::invalid("one rank's operations come as text only: give rank -1"));
            }
            _ => return Err(Error::invalid(format_args!("{format} is no format (text 0, JSON 1, SVG 2)"))),
        };
        // SAFETY: the C caller promises `capacity` writable bytes at text, and a writable needed, where not NULL.
        unsafe { write_text(text, capacity, needed, &report) }
    })
}

/// Parses the tensors of a plan.
///
/// # Safety
///
/// `items` is NULL or points to `count` structs, with all they point to.
unsafe fn parse_items(items: *const tutti_transfer_item, count: usize) -> Result<Vec<Item>> {
    let mut meshes = HashMap::new();
    // SAFETY: the caller's promise.
    let items = unsafe { structs("items", items, count) }?;
    let parse = |(index, item): (usize, tutti_transfer_item)| {
        // SAFETY: the caller's promises.
        let parsed = unsafe { parse_item(&item, &mut meshes) };
        parsed.map_err(|error| match error {
            Error::InvalidArgument(text) => Error::InvalidArgument(format!("item {index}: {text}")),
            error => error,
        })
    };
    items.into_iter().enumerate().map(parse).collect()
}

/// Meshes by where they are, so that layouts that share one in C do here.
type Meshes = HashMap<usize, Arc<Mesh>>;

/// # Safety
///
/// What the item points to is there.
unsafe fn parse_item(item: &tutti_transfer_item, meshes: &mut Meshes) -> Result<Item> {
    // SAFETY: the caller's promises.
    unsafe {
        let shape = numbers("shape", item.shape, item.dim_count)?;
        let wire = if item.wire_dtype == 0 { None } else { Some(DType::parse(item.wire_dtype)?) };
        Ok(Item {
            name: text("name", item.name)?.unwrap_or_default(),
            shape: shape.iter().map(|dim| *dim as u64).collect(),
            source: parse_layout(item.source, meshes)?,
            target: parse_layout(item.target, meshes)?,
            wire,
        })
    }
}

/// # Safety
///
/// What the layout points to is there.
unsafe fn parse_layout(layout: *const tutti_tensor_layout, meshes: &mut Meshes) -> Result<Layout> {
    // SAFETY: the caller's promises.
    unsafe {
        let layout = read_struct(layout)?;
        let mesh = match meshes.get(&layout.mesh.addr()) {
            Some(mesh) => mesh.clone(),
            None => {
                let raw = read_struct(layout.mesh)?;
                let dims: Vec<u64> = numbers("dims", raw.dims, raw.dim_count)?.iter().map(|dim| *dim as u64).collect();
                let ranks: Vec<u32> = numbers("ranks", raw.ranks, raw.rank_count)?
                    .iter()
                    .map(|rank| {
                        u32::try_from(*rank).map_err(|_| Error::invalid(format_args!("a mesh names rank {rank}")))
                    })
                    .collect::<Result<_>>()?;
                let mesh = Mesh::new(&dims, &ranks)?;
                meshes.insert(layout.mesh.addr(), mesh.clone());
                mesh
            }
        };
        let placements = structs("placements", layout.placements, layout.placement_count)?;
        let placements = placements.iter().map(|placement| parse_placement(placement)).collect::<Result<_>>()?;
        Ok(Layout { dtype: DType::parse(layout.dtype)?, mesh, placements })
    }
}

/// # Safety
///
/// The sizes are there.
unsafe fn parse_placement(placement: &tutti_placement) -> Result<Placement> {
    match placement.kind {
        TUTTI_REPLICATE => Ok(Placement::Replicate),
        TUTTI_PARTIAL => Ok(Placement::Partial(Op::parse(placement.op)?)),
        TUTTI_SHARD => {
            let split = match placement.split {
                TUTTI_SPLIT_CEIL => Split::Ceil,
                TUTTI_SPLIT_BALANCED => Split::Balanced,
                TUTTI_SPLIT_EXPLICIT => {
                    // SAFETY: the caller's promise.
                    let sizes = unsafe { numbers("sizes", placement.sizes, placement.size_count) }?;
                    Split::Explicit(sizes.iter().map(|size| *size as u64).collect())
                }
                other => {
                    return Err(Error::invalid(format_args!("{other} is no split (ceil 0, balanced 1, explicit 2)")));
                }
            };
            let dim = usize::try_from(placement.dim)
                .map_err(|_| Error::invalid(format_args!("a shard of dimension {}", placement.dim)))?;
            Ok(Placement::Shard { dim, split, order: placement.order })
        }
        other => Err(Error::invalid(format_args!("{other} is no placement (replicate 0, shard 1, partial 2)"))),
    }
}

/// The most elements of an array in a description: more are a mistake.
const LONGEST: usize = 1 << 24;

/// Reads an array of structs that all have the size the first one says.
///
/// # Safety
///
/// `first` is NULL or points to `count` structs as large as they say.
unsafe fn structs<T: Versioned>(name: &str, first: *const T, count: usize) -> Result<Vec<T>> {
    check_array(name, first, count)?;
    let mut all = Vec::with_capacity(count);
    let mut place = first.cast::<u8>();
    for _ in 0..count {
        // SAFETY: the caller's promise; the first element's size is where the next one begins.
        unsafe {
            all.push(read_struct(place.cast::<T>())?);
            if place.cast::<usize>().read_unaligned() != first.cast::<usize>().read_unaligned() {
                return Err(Error::invalid(format_args!("the elements of {name} have different struct_size")));
            }
            place = place.wrapping_add(first.cast::<usize>().read_unaligned());
        }
    }
    Ok(all)
}

/// An array of numbers.
///
/// # Safety
///
/// `first` is NULL or points to `count` numbers that stay.
unsafe fn numbers<'a, T>(name: &str, first: *const T, count: usize) -> Result<&'a [T]> {
    check_array(name, first, count)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { array(first, count) })
}

fn check_array<T>(name: &str, first: *const T, count: usize) -> Result<()> {
    if count > LONGEST {
        return Err(Error::invalid(format_args!("{count} elements of {name}: at most {LONGEST} can be meant")));
    }
    if first.is_null() && count > 0 {
        return Err(Error::invalid(format_args!("{name} is NULL with {count} elements")));
    }
    if !first.is_aligned() {
        return Err(Error::invalid(format_args!("{name} is not aligned as its elements are")));
    }
    Ok(())
}

/// # Safety
///
/// `first` points to `count` numbers that stay, unless there are none.
pub(super) unsafe fn array<'a, T>(first: *const T, count: usize) -> &'a [T] {
    if count == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { slice::from_raw_parts(first, count) }
}

fn parse_side(side: i32) -> Result<Side> {
    match side {
        TUTTI_SOURCE => Ok(Side::Source),
        TUTTI_TARGET => Ok(Side::Target),
        other => Err(Error::invalid(format_args!("{other} is no side (source 0, target 1)"))),
    }
}

fn parse_rank(plan: &Plan, rank: i32) -> Result<u32> {
    u32::try_from(rank).ok().filter(|rank| *rank < plan.options().world).ok_or_else(|| {
        Error::invalid(format_args!("rank is {rank}, but the plan is for a world of {}", plan.options().world))
    })
}

pub(super) fn beyond(what: &str, index: usize, count: usize) -> Error {
    Error::invalid(format_args!("{what} {index} of {count}"))
}

macro_rules! versioned {
    ($($name:ident $c_name:literal $size:literal;)*) => { $(
        // SAFETY: repr(C), begins with its size, and all bytes zero are numbers and pointers.
        unsafe impl Versioned for $name {
            const NAME: &'static str = $c_name;
            const FIRST_SIZE: usize = $size;
        }
    )* };
}

versioned! {
    tutti_mesh "tutti_mesh_t" 40;
    tutti_placement "tutti_placement_t" 48;
    tutti_tensor_layout "tutti_tensor_layout_t" 40;
    tutti_transfer_item "tutti_transfer_item_t" 56;
    tutti_transfer_options "tutti_transfer_options_t" 40;
    tutti_transfer_totals "tutti_transfer_totals_t" 192;
    tutti_transfer_load "tutti_transfer_load_t" 72;
    tutti_transfer_chunk "tutti_transfer_chunk_t" 136;
    tutti_transfer_bucket "tutti_transfer_bucket_t" 88;
    tutti_transfer_progress "tutti_transfer_progress_t" 56;
}
