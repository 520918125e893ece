//! Layouts: how a world splits into groups, planned, asked, drawn, and made.

use std::{ffi::c_char, sync::Arc};

use super::{
    group::{GROUPS, hand_out, parse_options},
    guard::{guard, guard_batched},
    handles::{Entry, Table, destroy},
    parse::{Out, clear, rank, read_struct, write_text},
    types::*,
};
use crate::{
    error::{Error, Result},
    group::layout::{AXES, Axis, Description, KINDS, Kind, Label, Layout, Sizes},
};

/// The layouts that C has handles of.
static LAYOUTS: Table<Arc<Layout>> = Table::new();

impl Entry for Arc<Layout> {
    type Handle = tutti_layout;
    const KIND: u8 = b'L';
    const NAME: &'static str = "layout";

    /// A layout is data; nothing goes on in it.
    fn retire(&self) {}
}

/// Plans how a world of options->world ranks splits into groups. Pure: no communication, no group, no environment;
/// the same options give the same layout everywhere.
///
/// Every rank has a place along five axes: external DP, DP, PP, PCP and TP. The groups of a kind are the ranks whose
/// places differ along its axis alone. Two kinds reuse ranks of these: DCP those of PCP, then TP; EP those of TP,
/// then PCP, then DP. The product of the five sizes must be the world's size; DCP and EP must divide what they reuse in
/// whole rows. Each rank is in exactly one group of each kind.
///
/// Ranks take places in their own order; or in options->order; or, where ranks are labelled, sorted by domain, host
/// and lane, so that neighbours are near each other in the interconnect whatever their numbers. All kinds follow.
///
/// *layout gets a handle that the caller must destroy with tutti_layout_destroy; NULL on failure. Memory and time grow
/// with the number of ranks alone. Thread-safe.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (there is no such layout, and why); TUTTI_INVALID_USAGE (forked
/// process); TUTTI_OUT_OF_MEMORY; TUTTI_INTERNAL_ERROR.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_layout_create(
    options: *const tutti_layout_options_t,
    layout: *mut *mut tutti_layout_t,
) -> tutti_status_t {
    // SAFETY: the C caller promises that layout is NULL or writable.
    unsafe { clear(layout) };
    guard("tutti_layout_create", || {
        // SAFETY: as above.
        let layout = unsafe { Out::new("layout", layout) }?;
        // SAFETY: the C caller promises that options is NULL or a struct as large as it says.
        let options = unsafe { read_struct(options) }?;
        // SAFETY: the C caller promises that its arrays have as many numbers as the world has ranks.
        let description = unsafe { describe(&options) }?;
        layout.write(LAYOUTS.insert(Arc::new(description.plan()?))?);
        Ok(())
    })
}

/// Writes a number that is equal for layouts that mean the same, on every machine, and differs otherwise. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_layout_digest(layout: *const tutti_layout_t, digest: *mut u64) -> tutti_status_t {
    guard("tutti_layout_digest", || {
        let layout = LAYOUTS.pin(layout)?;
        // SAFETY: the C caller promises that a digest which is not NULL is writable.
        unsafe { Out::new("digest", digest) }?.write(layout.digest());
        Ok(())
    })
}

/// Writes how many ranks each group of a kind has, and how many such groups there are; either may be NULL.
///
/// kind: TUTTI_LAYOUT_TP and so on. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_layout_size(
    layout: *const tutti_layout_t,
    kind: i32,
    group_size: *mut i32,
    group_count: *mut i32,
) -> tutti_status_t {
    guard("tutti_layout_size", || {
        let layout = LAYOUTS.pin(layout)?;
        let groups = layout.groups(Kind::parse(kind)?);
        for (out, value) in [(group_size, groups.size()), (group_count, groups.count())] {
            if !out.is_null() {
                // SAFETY: the C caller promises that what is not NULL is writable.
                unsafe { out.write(value as i32) };
            }
        }
        Ok(())
    })
}

/// Fills `ranks` with the ranks of every group of a kind, group after group, each in the order of its own ranks; groups
/// are in the order of their first ranks, and group g begins at g times the size of a group.
///
/// capacity: numbers at `ranks`, at least as many as the world has ranks; the rest is left alone. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_layout_ranks(
    layout: *const tutti_layout_t,
    kind: i32,
    ranks: *mut i32,
    capacity: usize,
) -> tutti_status_t {
    guard("tutti_layout_ranks", || {
        let layout = LAYOUTS.pin(layout)?;
        let found = layout.groups(Kind::parse(kind)?).ranks();
        // SAFETY: the C caller promises `capacity` writable numbers at ranks.
        unsafe { fill("ranks", ranks, capacity, found.iter().map(|rank| *rank as i32)) }
    })
}

/// Writes which group of a kind `rank` is in, and its rank within that group; either may be NULL. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_layout_of(
    layout: *const tutti_layout_t,
    kind: i32,
    rank: i32,
    group_index: *mut i32,
    group_rank: *mut i32,
) -> tutti_status_t {
    guard("tutti_layout_of", || {
        let layout = LAYOUTS.pin(layout)?;
        let groups = layout.groups(Kind::parse(kind)?);
        let found = self::rank("rank", rank, layout.world())?;
        let found = groups.of(found).ok_or_else(|| Error::Internal(format!("rank {found} is in no group")))?;
        for (out, value) in [(group_index, found.index), (group_rank, found.position)] {
            if !out.is_null() {
                // SAFETY: the C caller promises that what is not NULL is writable.
                unsafe { out.write(value as i32) };
            }
        }
        Ok(())
    })
}

/// Fills `hosts` and `domains` with how many hosts and how many interconnect domains each group of a kind touches, in
/// the order of the groups; 1 is a group that crosses nothing. Either may be NULL.
///
/// capacity: numbers at each, at least as many as there are groups of the kind. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process); TUTTI_UNSUPPORTED (the layout
/// was made without labels, so nothing is known of where ranks stand).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_layout_reach(
    layout: *const tutti_layout_t,
    kind: i32,
    hosts: *mut i32,
    domains: *mut i32,
    capacity: usize,
) -> tutti_status_t {
    guard("tutti_layout_reach", || {
        let layout = LAYOUTS.pin(layout)?;
        let groups = layout.groups(Kind::parse(kind)?);
        let reach: Option<Vec<_>> = groups.iter().map(|ranks| layout.reach(ranks)).collect();
        let reach = reach.ok_or_else(|| {
            Error::Unsupported("the layout was made without labels: give hosts or domains in its options".into())
        })?;
        for (name, out, part) in [
            ("hosts", hosts, reach.iter().map(|reach| reach.hosts as i32).collect::<Vec<_>>()),
            ("domains", domains, reach.iter().map(|reach| reach.domains as i32).collect()),
        ] {
            if !out.is_null() {
                // SAFETY: the C caller promises `capacity` writable numbers at what is not NULL.
                unsafe { fill(name, out, capacity, part.into_iter()) }?;
            }
        }
        Ok(())
    })
}

/// Writes the layout for people (TUTTI_FORMAT_TEXT: a line for every group), for tools (TUTTI_FORMAT_JSON: one object)
/// or as a picture (TUTTI_FORMAT_SVG: for every kind a panel with the ranks as cells and the groups as colours).
///
/// text, capacity, needed: see "Texts" at the top of this header. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process); TUTTI_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_layout_draw(
    layout: *const tutti_layout_t,
    format: i32,
    text: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> tutti_status_t {
    guard("tutti_layout_draw", || {
        let layout = LAYOUTS.pin(layout)?;
        let drawn = match format {
            TUTTI_FORMAT_TEXT => layout.table(),
            TUTTI_FORMAT_JSON => layout.json(),
            TUTTI_FORMAT_SVG => layout.svg(),
            other => {
                return Err(Error::invalid(format_args!(
                    "format is {other}; a layout is drawn as text {TUTTI_FORMAT_TEXT}, JSON {TUTTI_FORMAT_JSON} or SVG \
                     {TUTTI_FORMAT_SVG}"
                )));
            }
        };
        // SAFETY: the C caller promises `capacity` writable bytes at text, and a writable needed, where not NULL.
        unsafe { write_text(text, capacity, needed, &drawn) }
    })
}

/// Makes the groups that this rank has in a layout of `parent`: one of each kind, with as many ranks as the layout says,
/// one included.
///
/// kinds: 0 for all; else the bits 1 << TUTTI_LAYOUT_TP and so on of those that are wanted. options: NULL for the
/// defaults; the groups are named after kind and number, as "tp:0", or "NAME/tp:0" where options->name is set.
/// Collective over all ranks of the parent, of which the layout must have as many. The ranks first compare what they were
/// given: where layouts or kinds differ, no group is made. Then all groups are made on all ranks, or none.
///
/// groups: TUTTI_LAYOUT_KINDS handles, which get the group of each kind at groups[kind] and NULL for kinds that are not
/// wanted; the caller must destroy each with tutti_group_destroy. In an open batch they are NULL until tutti_batch_end,
/// and `groups` must stay valid until then. All are NULL on failure. The layout itself is not needed any more.
///
/// Returns what tutti_group_split returns; TUTTI_MISMATCH names ranks whose layouts differ.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_layout_groups(
    parent: *mut tutti_group_t,
    layout: *const tutti_layout_t,
    kinds: u32,
    options: *const tutti_group_options_t,
    groups: *mut *mut tutti_group_t,
) -> tutti_status_t {
    guard_batched("tutti_layout_groups", || {
        if groups.is_null() {
            return Err(Error::invalid("groups is NULL"));
        }
        for kind in 0..TUTTI_LAYOUT_KINDS {
            // SAFETY: the C caller promises TUTTI_LAYOUT_KINDS writable handles at groups.
            unsafe { clear(groups.add(kind)) };
        }
        let parent = GROUPS.pin(parent)?;
        let layout = LAYOUTS.pin(layout)?;
        let kinds = wanted(kinds)?;
        // SAFETY: the C caller promises that options is NULL or a struct as large as it says, whose texts are texts.
        let options = unsafe { parse_options(options) }?;
        let mut places = Vec::with_capacity(kinds.len());
        for kind in &kinds {
            // SAFETY: as above, until the batch ends where one is open.
            let out = unsafe { Out::new("groups", groups.add(*kind as usize)) }?;
            places.push((*kind, GROUPS.reserve()?, out));
        }
        let deliver = move |mut made: Vec<(Kind, _)>| {
            for (kind, place, out) in places {
                if let Some(at) = made.iter().position(|(of, _)| *of == kind) {
                    out.write(hand_out(place, made.swap_remove(at).1));
                }
            }
        };
        parent.create_layout(&layout, &kinds, options, Box::new(deliver))
    })
}

/// Destroys a layout. Groups made from it live on. Destroying NULL or a destroyed layout succeeds. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a layout); TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_layout_destroy(layout: *mut tutti_layout_t) -> tutti_status_t {
    guard("tutti_layout_destroy", || destroy(&LAYOUTS, layout))
}

/// Parses the options of a layout.
///
/// # Safety
///
/// Each array is NULL or points to as many readable numbers as `options.world` says.
unsafe fn describe(options: &tutti_layout_options) -> Result<Description> {
    let size = |name: &str, value: i32| {
        u32::try_from(value)
            .map_err(|_| Error::invalid(format_args!("{name} is {value}; a size is 1 or more, or 0 for the default")))
    };
    let world = size("world", options.world)?;
    let sizes = Sizes {
        tensor: size("tensor", options.tensor)?,
        pipeline: size("pipeline", options.pipeline)?,
        data: size("data", options.data)?,
        external_data: size("external_data", options.external_data)?,
        prefill_context: size("prefill_context", options.prefill_context)?,
        decode_context: size("decode_context", options.decode_context)?,
        expert: size("expert", options.expert)?,
    };
    // Before anything is read or allocated for so many ranks.
    sizes.check(world)?;
    let read = |name: &str, array: *const i32| -> Result<Option<Vec<u32>>> {
        if array.is_null() {
            return Ok(None);
        }
        let mut numbers = Vec::with_capacity(world as usize);
        for index in 0..world as usize {
            // SAFETY: `index` is below the world's size, for which the caller promises readable numbers.
            let value = unsafe { array.add(index).read() };
            numbers.push(
                u32::try_from(value)
                    .map_err(|_| Error::invalid(format_args!("{name}[{index}] is {value}; it must be 0 or more")))?,
            );
        }
        Ok(Some(numbers))
    };
    let order = read("order", options.order)?.unwrap_or_default();
    let parts = [read("hosts", options.hosts)?, read("domains", options.domains)?, read("lanes", options.lanes)?];
    let labels = match &parts {
        [None, None, None] => Vec::new(),
        [hosts, domains, lanes] => {
            let part =
                |part: &Option<Vec<u32>>, rank: usize, otherwise| part.as_ref().map_or(otherwise, |all| all[rank]);
            // Ranks without lanes keep their order.
            let label = |rank: usize| Label {
                host: part(hosts, rank, 0),
                domain: part(domains, rank, 0),
                lane: part(lanes, rank, rank as u32),
            };
            (0..world as usize).map(label).collect()
        }
    };
    Ok(Description { world, sizes, axes: axes(&options.axes)?, order, labels })
}

/// Parses the order of axes, which are named by the kinds of groups along them; all zero: the usual one.
fn axes(codes: &[i32; 5]) -> Result<[Axis; 5]> {
    if *codes == [0; 5] {
        return Ok(AXES);
    }
    let mut axes = AXES;
    for (axis, code) in axes.iter_mut().zip(codes) {
        let kind = Kind::parse(*code)?;
        *axis = kind.axis().ok_or_else(|| {
            Error::invalid(format_args!("axes names {}, which has no axis of its own: it reuses ranks", kind.name()))
        })?;
    }
    Ok(axes)
}

/// Parses a set of kinds.
fn wanted(kinds: u32) -> Result<Vec<Kind>> {
    if kinds >> KINDS.len() != 0 {
        return Err(Error::invalid(format_args!(
            "kinds is {kinds:#x}; it has a bit 1 << TUTTI_LAYOUT_... for every kind that is wanted, or is 0 for all"
        )));
    }
    Ok(KINDS.into_iter().filter(|kind| kinds == 0 || kinds >> *kind as u32 & 1 == 1).collect())
}

/// Fills a caller's array.
///
/// # Safety
///
/// `array` is NULL or points to `capacity` writable numbers.
unsafe fn fill(name: &str, array: *mut i32, capacity: usize, values: impl ExactSizeIterator<Item = i32>) -> Result<()> {
    if array.is_null() {
        return Err(Error::invalid(format_args!("{name} is NULL")));
    }
    if capacity < values.len() {
        return Err(Error::invalid(format_args!("capacity is {capacity}, but {name} gets {} numbers", values.len())));
    }
    for (index, value) in values.enumerate() {
        // SAFETY: there are no more values than `capacity`, for which the caller promises writable numbers.
        unsafe { array.add(index).write(value) };
    }
    Ok(())
}
