//! What the C functions leave behind: a call that succeeds allocates nothing, and what is destroyed is gone.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    ptr,
    sync::atomic::{AtomicIsize, Ordering},
};

use tutti::capi::{collectives::*, group::*, request::*, types::*, world::*};

/// The system's allocator, which counts what each thread asks for and what all together have.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// Bytes allocated and not freed.
static LIVE: AtomicIsize = AtomicIsize::new(0);

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        LIVE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of this thread while it makes a call that succeeds.
#[track_caller]
fn allocations(call: impl FnOnce() -> tutti_status_t) -> usize {
    let before = ALLOCATIONS.get();
    let status = call();
    let count = ALLOCATIONS.get() - before;
    assert_eq!(status, TUTTI_SUCCESS);
    count
}

#[test]
fn the_c_functions_leave_nothing_behind() {
    a_call_that_succeeds_allocates_nothing();
    ten_thousand_groups_leave_no_memory_and_no_descriptor_behind();
    calls_of_every_kind_leave_no_memory_behind();
}

fn a_call_that_succeeds_allocates_nothing() {
    const RANKS: usize = 2;
    /// More than one turn of whatever is warmed up once.
    const TURNS: usize = 8;
    let mut ranks = [ptr::null_mut(); RANKS];
    // SAFETY: there is room for as many handles as ranks.
    let made = unsafe { tutti_world_create_local(RANKS as i32, ptr::null(), ptr::null(), ranks.as_mut_ptr()) };
    assert_eq!(made, TUTTI_SUCCESS);
    let addresses = ranks.map(<*mut _>::addr);
    let counts = std::thread::scope(|scope| {
        addresses
            .map(|address| {
                scope.spawn(move || {
                    let group: *mut tutti_group = ptr::without_provenance_mut(address);
                    let (send, mut recv) = ([1.0f32; 300], [0.0f32; 300]);
                    let mut counts = [0; TURNS];
                    for count in &mut counts {
                        // SAFETY: the out-parameters are writable and the buffers have 300 elements.
                        *count = unsafe {
                            allocations(|| tutti_group_rank(group, &mut 0))
                                + allocations(|| tutti_group_check(group))
                                + allocations(|| tutti_all_reduce_mode(group, 300, TUTTI_FLOAT32, TUTTI_SUM, 0, &mut 0))
                                + allocations(|| {
                                    let (send, recv) = (send.as_ptr().cast(), recv.as_mut_ptr().cast());
                                    tutti_all_reduce(group, send, recv, 300, TUTTI_FLOAT32, TUTTI_SUM, ptr::null_mut())
                                })
                        };
                        assert_eq!(recv, [RANKS as f32; 300]);
                        let mut rank = 0;
                        // SAFETY: as above.
                        *count += unsafe {
                            assert_eq!(tutti_group_rank(group, &mut rank), TUTTI_SUCCESS);
                            allocations(|| {
                                let (send, recv, peer) = (send.as_ptr().cast(), recv.as_mut_ptr().cast(), 1 - rank);
                                tutti_sendrecv(group, send, 300, peer, recv, 300, peer, TUTTI_FLOAT32, ptr::null_mut())
                            })
                        };
                        assert_eq!(recv, [1.0; 300]);
                    }
                    counts
                })
            })
            .map(|rank| rank.join().unwrap())
    });
    for count in counts {
        assert_eq!(count[TURNS / 2..], [0; TURNS - TURNS / 2], "allocations in {TURNS} turns: {count:?}");
    }
    for rank in ranks {
        // SAFETY: any handle may be passed.
        assert_eq!(unsafe { tutti_group_destroy(rank) }, TUTTI_SUCCESS);
    }
}

fn ten_thousand_groups_leave_no_memory_and_no_descriptor_behind() {
    const CYCLES: usize = 10_000;
    /// Cycles after which every table and cache has its size.
    const WARM: usize = 1_000;
    /// Bytes that may remain all the same: less than a bit per cycle.
    const SLACK: isize = 1_024;
    let mut world = ptr::null_mut();
    // SAFETY: there is room for one handle.
    assert_eq!(unsafe { tutti_world_create_local(1, ptr::null(), ptr::null(), &mut world) }, TUTTI_SUCCESS);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mappings = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let mut warm = (0, 0, 0);
    for cycle in 0..CYCLES {
        if cycle == WARM {
            warm = (descriptors(), mappings(), LIVE.load(Ordering::Relaxed));
        }
        let mut group = ptr::null_mut();
        // SAFETY: the out-parameter is writable, and any handle may be passed.
        unsafe {
            assert_eq!(tutti_group_split(world, 0, 0, ptr::null(), &mut group), TUTTI_SUCCESS);
            assert_eq!(tutti_barrier(group, ptr::null_mut()), TUTTI_SUCCESS);
            assert_eq!(tutti_group_destroy(group), TUTTI_SUCCESS);
            assert_eq!(tutti_group_destroy(group), TUTTI_SUCCESS);
        }
    }
    let left = LIVE.load(Ordering::Relaxed) - warm.2;
    assert!(left <= SLACK, "{left} bytes were left by {} groups", CYCLES - WARM);
    assert_eq!(descriptors(), warm.0, "descriptors were left");
    assert!(mappings() <= warm.1 + 4, "mappings were left: {} before, {} after", warm.1, mappings());
    // SAFETY: any handle may be passed.
    assert_eq!(unsafe { tutti_group_destroy(world) }, TUTTI_SUCCESS);
}

/// Every collective and both sides of messages, blocking, by requests and in batches, again and again: what they take
/// they give back.
fn calls_of_every_kind_leave_no_memory_behind() {
    const ROUNDS: usize = 300;
    const WARM: usize = 100;
    const RANKS: usize = 2;
    /// Elements of a call that travels at once, and of one that takes chunks.
    const COUNTS: [usize; 2] = [10, 50_000];
    let mut ranks = [ptr::null_mut(); RANKS];
    // SAFETY: there is room for as many handles as ranks.
    let made = unsafe { tutti_world_create_local(RANKS as i32, ptr::null(), ptr::null(), ranks.as_mut_ptr()) };
    assert_eq!(made, TUTTI_SUCCESS);
    let send = vec![1_i32; RANKS * COUNTS[1]];
    let mut recv = [vec![0_i32; RANKS * COUNTS[1]], vec![0_i32; RANKS * COUNTS[1]]];
    let kinds = (TUTTI_ALL_REDUCE..=TUTTI_BARRIER).collect::<Vec<_>>();
    let mut warm = 0;
    for round in 0..ROUNDS {
        if round == WARM {
            warm = LIVE.load(Ordering::Relaxed);
        }
        for kind in &kinds {
            let count = COUNTS[usize::from(round % 10 == 0)];
            let mut requests = [ptr::null_mut(); RANKS];
            let batched = round % 2 == 0;
            if batched {
                assert_eq!(tutti_batch_begin(), TUTTI_SUCCESS);
            }
            for (rank, (recv, request)) in recv.iter_mut().zip(&mut requests).enumerate() {
                // Where one sends the other receives.
                let kind = match *kind {
                    TUTTI_SEND | TUTTI_RECV => {
                        if rank == 0 {
                            TUTTI_SEND
                        } else {
                            TUTTI_RECV
                        }
                    }
                    kind => kind,
                };
                let peer = if kind == TUTTI_SEND { 1 } else { 0 };
                // SAFETY: all zero is a call of nothing.
                let mut call: tutti_call_t = unsafe { std::mem::zeroed() };
                call.struct_size = size_of::<tutti_call_t>();
                (call.collective, call.dtype, call.peer) = (kind, TUTTI_INT32, peer);
                call.send_count = if kind == TUTTI_BARRIER { 0 } else { count };
                (call.send, call.recv) = (send.as_ptr().cast(), recv.as_mut_ptr().cast());
                let request = if batched { ptr::null_mut() } else { request };
                // SAFETY: the buffers hold what every call needs and outlive it.
                assert_eq!(unsafe { tutti_start(ranks[rank], &call, request) }, TUTTI_SUCCESS, "collective {kind}");
            }
            if batched {
                assert_eq!(tutti_batch_end(), TUTTI_SUCCESS);
            }
            for request in requests.into_iter().filter(|_| !batched) {
                // SAFETY: a request that was just started, and is freed once.
                let over = unsafe { (tutti_request_wait(request, 0), tutti_request_free(request)) };
                assert_eq!(over, (TUTTI_SUCCESS, TUTTI_SUCCESS));
            }
        }
    }
    let left = LIVE.load(Ordering::Relaxed) - warm;
    assert!(left <= 4096, "{left} bytes were left by {} rounds", ROUNDS - WARM);
    for rank in ranks {
        // SAFETY: any handle may be passed.
        assert_eq!(unsafe { tutti_group_destroy(rank) }, TUTTI_SUCCESS);
    }
}
