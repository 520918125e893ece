//! What holds for the C functions as a whole.

use std::{ffi::CStr, ptr};

use super::{
    capture::*, collectives::*, group::*, memory::*, request::*, text::tutti_last_error, types::*, watchdog, world::*,
};

type GroupCall = (&'static str, Box<dyn Fn(*mut tutti_group) -> tutti_status_t>);

/// Every function that takes a group, with arguments that would otherwise be right.
fn group_functions() -> Vec<GroupCall> {
    /// Makes one entry; memory the call may write to lives in the closure.
    macro_rules! function {
        ($name:ident($group:ident $(, $argument:expr)*)) => {
            (
                stringify!($name),
                Box::new(|$group: *mut tutti_group| {
                    // SAFETY: the pointers are to memory of the closure that is as large as the call says.
                    unsafe { $name($group $(, $argument)*) }
                }) as Box<dyn Fn(*mut tutti_group) -> tutti_status_t>,
            )
        };
    }
    const F: i32 = TUTTI_FLOAT32;
    let call = || {
        // SAFETY: all bytes zero is a value of the struct.
        let zero: tutti_call = unsafe { std::mem::zeroed() };
        tutti_call { struct_size: size_of::<tutti_call>(), collective: TUTTI_BARRIER, ..zero }
    };
    let failure = || tutti_failure { struct_size: 32, status: 0, rank: 0, collective: 0, sequence: 0 };
    vec![
        function!(tutti_group_create(group, [0].as_ptr(), 1, ptr::null(), &mut ptr::dangling_mut())),
        function!(tutti_group_split(group, 0, 0, ptr::null(), &mut ptr::dangling_mut())),
        function!(tutti_group_rank(group, &mut 0)),
        function!(tutti_group_size(group, &mut 0)),
        function!(tutti_group_name(group, ptr::null_mut(), 0, &mut 0)),
        function!(tutti_group_check(group)),
        function!(tutti_group_error(group, ptr::null_mut(), 0, &mut 0)),
        (
            "tutti_group_failure",
            Box::new(move |group| {
                // SAFETY: a struct of the size it says.
                unsafe { tutti_group_failure(group, &mut failure()) }
            }),
        ),
        function!(tutti_group_alive(group, [0; 64].as_mut_ptr(), 64)),
        function!(tutti_group_cpu(group, &mut ptr::dangling_mut())),
        function!(tutti_group_sync(group, 1)),
        function!(tutti_group_set_enabled(group, c"shm".as_ptr(), 1)),
        function!(tutti_group_abort(group)),
        (
            "tutti_start",
            Box::new(move |group| {
                // SAFETY: a struct of the size it says.
                unsafe { tutti_start(group, &call(), &mut ptr::dangling_mut()) }
            }),
        ),
        function!(tutti_all_reduce(group, ptr::null(), ptr::null_mut(), 0, F, 0, ptr::null_mut())),
        function!(tutti_all_reduce_auto(
            group,
            ptr::null_mut(),
            ptr::null_mut(),
            0,
            F,
            0,
            ptr::null_mut(),
            &mut ptr::null_mut()
        )),
        function!(tutti_all_reduce_mode(group, 0, F, 0, 0, &mut 0)),
        function!(tutti_all_gather(group, ptr::null(), ptr::null_mut(), 0, F, ptr::null_mut())),
        function!(tutti_reduce_scatter(group, ptr::null(), ptr::null_mut(), 0, F, 0, ptr::null_mut())),
        function!(tutti_broadcast(group, ptr::null(), ptr::null_mut(), 0, F, 0, ptr::null_mut())),
        function!(tutti_reduce(group, ptr::null(), ptr::null_mut(), 0, F, 0, 0, ptr::null_mut())),
        function!(tutti_gather(group, ptr::null(), ptr::null_mut(), 0, F, 0, ptr::null_mut())),
        function!(tutti_scatter(group, ptr::null(), ptr::null_mut(), 0, F, 0, ptr::null_mut())),
        function!(tutti_all_to_all(group, ptr::null(), ptr::null_mut(), 0, F, ptr::null_mut())),
        function!(tutti_barrier(group, ptr::null_mut())),
        function!(tutti_send(group, ptr::null(), 0, F, 0, ptr::null_mut())),
        function!(tutti_recv(group, ptr::null_mut(), 0, F, 0, ptr::null_mut())),
        function!(tutti_sendrecv(group, ptr::null(), 0, 0, ptr::null_mut(), 0, 0, F, ptr::null_mut())),
        function!(tutti_all_gather_v(
            group,
            ptr::null(),
            ptr::null_mut(),
            ptr::null(),
            ptr::null(),
            F,
            ptr::null_mut()
        )),
        function!(tutti_reduce_scatter_v(
            group,
            ptr::null(),
            ptr::null_mut(),
            ptr::null(),
            ptr::null(),
            F,
            0,
            ptr::null_mut()
        )),
        function!(tutti_all_to_all_v(
            group,
            ptr::null(),
            ptr::null(),
            ptr::null(),
            ptr::null_mut(),
            ptr::null(),
            ptr::null(),
            F,
            ptr::null_mut()
        )),
        function!(tutti_explain(group, 0, 0, F, 0, 0, 0, ptr::null_mut(), 0, &mut 0)),
        function!(tutti_mem_alloc(group, 0, &mut ptr::dangling_mut())),
    ]
}

fn last_error() -> String {
    // SAFETY: the text ends with NUL and is copied at once.
    unsafe { CStr::from_ptr(tutti_last_error()) }.to_str().unwrap().to_owned()
}

#[test]
fn what_is_no_group_is_refused_by_every_function_with_its_name() {
    let memory = 0u64;
    let garbage: [*mut tutti_group; 4] = [
        ptr::null_mut(),
        ptr::dangling_mut(),
        ptr::from_ref(&memory).cast_mut().cast(),
        ptr::without_provenance_mut(usize::MAX),
    ];
    for (name, function) in group_functions() {
        for group in garbage {
            assert_eq!(function(group), TUTTI_INVALID_ARGUMENT, "{name}({group:p})");
            let text = last_error();
            assert!(text.starts_with(&format!("{name}: the ")) && text.contains("group"), "{name}: {text:?}");
        }
    }
}

#[test]
fn a_handle_that_is_not_made_is_null() {
    // SAFETY: the out-parameters are writable, NULL and garbage may be passed as handles.
    unsafe {
        let mut group = ptr::dangling_mut();
        assert_eq!(
            tutti_group_create(ptr::null_mut(), [0].as_ptr(), 1, ptr::null(), &mut group),
            TUTTI_INVALID_ARGUMENT
        );
        assert!(group.is_null());
        group = ptr::dangling_mut();
        assert_eq!(tutti_group_split(ptr::null_mut(), 0, 0, ptr::null(), &mut group), TUTTI_INVALID_ARGUMENT);
        assert!(group.is_null());
        group = ptr::dangling_mut();
        assert_eq!(tutti_group_cpu(ptr::null_mut(), &mut group), TUTTI_INVALID_ARGUMENT);
        assert!(group.is_null());
        group = ptr::dangling_mut();
        let options = tutti_world_options { struct_size: 3, ..std::mem::zeroed() };
        assert_eq!(tutti_world_create(&options, &mut group), TUTTI_INVALID_ARGUMENT);
        assert!(group.is_null());
        let mut ranks = [ptr::dangling_mut(); 2];
        assert_eq!(tutti_world_create_local(2, ptr::null(), &options, ranks.as_mut_ptr()), TUTTI_INVALID_ARGUMENT);
        assert!(ranks.iter().all(|rank| rank.is_null()));
        for size in [0, -1, i32::MIN] {
            assert_eq!(
                tutti_world_create_local(size, ptr::null(), ptr::null(), ptr::null_mut()),
                TUTTI_INVALID_ARGUMENT
            );
        }
        let mut request = ptr::dangling_mut();
        assert_eq!(tutti_start(ptr::null_mut(), ptr::null(), &mut request), TUTTI_INVALID_ARGUMENT);
        assert!(request.is_null());
        let mut memory = ptr::dangling_mut();
        assert_eq!(tutti_mem_alloc(ptr::null_mut(), 8, &mut memory), TUTTI_INVALID_ARGUMENT);
        assert!(memory.is_null());
    }
}

#[test]
fn freeing_nothing_succeeds_and_freeing_what_was_never_made_does_not() {
    // SAFETY: NULL and garbage may be passed as handles.
    unsafe {
        assert_eq!(tutti_group_destroy(ptr::null_mut()), TUTTI_SUCCESS);
        assert_eq!(tutti_request_free(ptr::null_mut()), TUTTI_SUCCESS);
        assert_eq!(tutti_capture_destroy(ptr::null_mut()), TUTTI_SUCCESS);
        assert_eq!(tutti_mem_free(ptr::null_mut()), TUTTI_SUCCESS);
        assert_eq!(tutti_group_destroy(ptr::dangling_mut()), TUTTI_INVALID_ARGUMENT);
        assert_eq!(tutti_request_free(ptr::dangling_mut()), TUTTI_INVALID_ARGUMENT);
        assert_eq!(tutti_capture_destroy(ptr::dangling_mut()), TUTTI_INVALID_ARGUMENT);
        assert_eq!(tutti_mem_free(ptr::dangling_mut()), TUTTI_INVALID_ARGUMENT);
    }
}

#[test]
fn what_is_no_request_and_no_capture_is_refused() {
    // SAFETY: NULL and garbage may be passed as handles.
    unsafe {
        for request in [ptr::null_mut(), ptr::dangling_mut()] {
            assert_eq!(tutti_request_test(request), TUTTI_INVALID_ARGUMENT);
            assert_eq!(tutti_request_wait(request, 1), TUTTI_INVALID_ARGUMENT);
        }
        for capture in [ptr::null_mut(), ptr::dangling_mut()] {
            assert_eq!(tutti_capture_commit(capture), TUTTI_INVALID_ARGUMENT);
            assert_eq!(tutti_capture_abort(capture), TUTTI_INVALID_ARGUMENT);
        }
    }
}

#[test]
fn the_size_of_an_id_can_be_asked_for_without_making_one() {
    let mut needed = 0;
    let mut id = [0x55u8; TUTTI_UNIQUE_ID_BYTES];
    // SAFETY: the buffer is as large as the call says.
    unsafe {
        assert_eq!(tutti_unique_id_create(ptr::null_mut(), 0, &mut needed), TUTTI_SUCCESS);
        assert_eq!(needed, TUTTI_UNIQUE_ID_BYTES);
        needed = 77;
        assert_eq!(tutti_unique_id_create(id.as_mut_ptr().cast(), id.len() - 1, &mut needed), TUTTI_INVALID_ARGUMENT);
        assert_eq!(tutti_unique_id_create(ptr::null_mut(), id.len(), &mut needed), TUTTI_INVALID_ARGUMENT);
    }
    assert_eq!((needed, id), (77, [0x55; TUTTI_UNIQUE_ID_BYTES]), "a failed call writes nothing");
}

/// The ranks of a world in this process, destroyed at the end.
struct World(Vec<Rank>);

#[derive(Clone, Copy, PartialEq, Eq)]
struct Rank(*mut tutti_group);

// SAFETY: a handle may be used from any thread.
unsafe impl Send for Rank {}
// SAFETY: as above.
unsafe impl Sync for Rank {}

impl World {
    fn new(size: usize) -> Self {
        let mut ranks = vec![ptr::null_mut(); size];
        // SAFETY: all bytes zero is a value of the struct.
        let zero: tutti_world_options = unsafe { std::mem::zeroed() };
        let options = tutti_world_options { struct_size: size_of::<tutti_world_options>(), timeout_ms: 30_000, ..zero };
        // SAFETY: there is room for as many handles as ranks.
        ok(unsafe { tutti_world_create_local(size as i32, ptr::null(), &options, ranks.as_mut_ptr()) });
        World(ranks.into_iter().map(Rank).collect())
    }

    /// Runs every rank in a thread of its own.
    fn each(&self, body: impl Fn(usize, *mut tutti_group) + Sync) {
        let body = &body;
        std::thread::scope(|scope| {
            for (rank, group) in self.0.iter().copied().enumerate() {
                scope.spawn(move || {
                    let Rank(group) = { group };
                    body(rank, group);
                });
            }
        });
    }

    fn handle(&self, rank: usize) -> *mut tutti_group {
        self.0[rank].0
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for Rank(group) in &self.0 {
            // SAFETY: a handle may be destroyed again.
            unsafe { tutti_group_destroy(*group) };
        }
    }
}

#[track_caller]
fn ok(status: tutti_status_t) {
    assert_eq!(status, TUTTI_SUCCESS, "{}", last_error());
}

/// An all_reduce of floats.
fn all_reduce(group: *mut tutti_group, send: &[f32], recv: &mut [f32]) -> tutti_status_t {
    assert_eq!(send.len(), recv.len());
    let (send, count) = (send.as_ptr().cast(), send.len());
    // SAFETY: the buffers have that many elements.
    unsafe { tutti_all_reduce(group, send, recv.as_mut_ptr().cast(), count, TUTTI_FLOAT32, TUTTI_SUM, ptr::null_mut()) }
}

#[test]
fn ranks_in_threads_reduce_and_gather() {
    let _watchdog = watchdog();
    World::new(3).each(|rank, group| {
        let (mut own, mut size) = (-1, -1);
        // SAFETY: the out-parameters are writable.
        unsafe {
            ok(tutti_group_rank(group, &mut own));
            ok(tutti_group_size(group, &mut size));
        }
        assert_eq!((own, size), (rank as i32, 3));
        let mut sum = [0.0; 5];
        ok(all_reduce(group, &[rank as f32; 5], &mut sum));
        assert_eq!(sum, [3.0; 5]);
        let mut all = [0u8; 6];
        let mine = [rank as u8; 2];
        let (send, recv) = (mine.as_ptr().cast(), all.as_mut_ptr().cast());
        // SAFETY: two bytes from each of three ranks.
        ok(unsafe { tutti_all_gather(group, send, recv, 2, TUTTI_BYTES, ptr::null_mut()) });
        assert_eq!(all, [0, 0, 1, 1, 2, 2]);
        // SAFETY: a barrier has no buffers.
        ok(unsafe { tutti_barrier(group, ptr::null_mut()) });
    });
}

#[test]
fn auto_says_where_the_result_is_and_leaves_the_other_buffer_alone() {
    let _watchdog = watchdog();
    World::new(2).each(|rank, group| {
        let (mut buffer, mut scratch, mut result) = ([rank as i32 + 1; 4], [77; 4], ptr::null_mut());
        let (first, second) = (buffer.as_mut_ptr().cast(), scratch.as_mut_ptr().cast());
        let none = ptr::null_mut();
        let mut mode = -1;
        // SAFETY: four elements each.
        unsafe {
            ok(tutti_all_reduce_auto(group, first, second, 4, TUTTI_INT32, TUTTI_SUM, none, &mut result));
            ok(tutti_all_reduce_mode(group, 4, TUTTI_INT32, TUTTI_SUM, 0, &mut mode));
        }
        if mode & TUTTI_MODE_INPLACE != 0 {
            assert_eq!((result, buffer, scratch), (first, [3; 4], [77; 4]));
        } else {
            assert_eq!((result, buffer, scratch), (second, [rank as i32 + 1; 4], [3; 4]));
        }
        let same = buffer.as_mut_ptr().cast();
        // SAFETY: refused untouched.
        let status = unsafe { tutti_all_reduce_auto(group, same, same, 4, TUTTI_INT32, 0, none, &mut result) };
        assert_eq!(status, TUTTI_INVALID_ARGUMENT);
        // SAFETY: nothing is touched.
        ok(unsafe { tutti_all_reduce_auto(group, none, none, 0, TUTTI_INT32, 0, none, &mut result) });
    });
}

#[test]
fn one_thread_drives_all_ranks_in_a_batch() {
    let _watchdog = watchdog();
    let world = World::new(3);
    let mut sums = [[0.0f32; 2]; 3];
    let mut halves = [ptr::dangling_mut(); 3];
    let sends: [[f32; 2]; 3] = std::array::from_fn(|rank| [rank as f32; 2]);
    ok(tutti_batch_begin());
    for (rank, (send, sum)) in sends.iter().zip(&mut sums).enumerate() {
        ok(all_reduce(world.handle(rank), send, sum));
        let color = if rank == 1 { -1 } else { 5 };
        // SAFETY: the handles are written at the end of the batch, within this function.
        ok(unsafe { tutti_group_split(world.handle(rank), color, -(rank as i32), ptr::null(), &mut halves[rank]) });
    }
    assert!(halves.iter().all(|half| half.is_null()), "a handle is NULL until the batch ends");
    ok(tutti_batch_end());
    assert_eq!(sums, [[3.0; 2]; 3]);
    assert!(halves[1].is_null());
    for (half, expected) in [(halves[0], 1), (halves[2], 0)] {
        let (mut rank, mut size) = (-1, -1);
        // SAFETY: the out-parameters are writable.
        unsafe {
            ok(tutti_group_rank(half, &mut rank));
            ok(tutti_group_size(half, &mut size));
            ok(tutti_group_destroy(half));
        }
        assert_eq!((rank, size), (expected, 2), "keys order the ranks");
    }
    assert_eq!(tutti_batch_end(), TUTTI_INVALID_USAGE);
}

#[test]
fn a_refused_call_cancels_its_batch_and_nothing_of_it_happens() {
    let _watchdog = watchdog();
    let world = World::new(2);
    let (mut sums, mut child) = ([[9.0f32; 2]; 2], ptr::dangling_mut());
    ok(tutti_batch_begin());
    ok(all_reduce(world.handle(0), &[1.0; 2], &mut sums[0]));
    // SAFETY: a NULL buffer is refused, and the handle is written within this function.
    unsafe {
        let refused =
            tutti_all_reduce(world.handle(1), ptr::null(), ptr::null_mut(), 2, TUTTI_FLOAT32, 0, ptr::null_mut());
        assert_eq!(refused, TUTTI_INVALID_ARGUMENT);
        ok(tutti_group_create(world.handle(0), [0].as_ptr(), 1, ptr::null(), &mut child));
    }
    assert_eq!(tutti_batch_end(), TUTTI_INVALID_ARGUMENT);
    let told = last_error();
    assert!(told.contains("because tutti_all_reduce was refused: send is NULL"), "{told}");
    assert_eq!((sums, child), ([[9.0; 2]; 2], ptr::null_mut()));
    world.each(|_, group| {
        let mut sum = [0.0];
        ok(all_reduce(group, &[1.0], &mut sum));
        assert_eq!(sum, [2.0]);
    });
}

#[test]
fn requests_are_tested_waited_for_and_freed() {
    let _watchdog = watchdog();
    let world = World::new(2);
    let send = [1.5f32, 2.5];
    let mut recv = [[0.0f32; 2]; 2];
    let mut requests = [ptr::dangling_mut(); 2];
    for (rank, (recv, request)) in recv.iter_mut().zip(&mut requests).enumerate() {
        // SAFETY: all bytes zero is a value of the struct.
        let zero: tutti_call = unsafe { std::mem::zeroed() };
        let call = tutti_call {
            struct_size: size_of::<tutti_call>(),
            dtype: TUTTI_FLOAT32,
            send: send.as_ptr().cast(),
            recv: recv.as_mut_ptr().cast(),
            send_count: 2,
            ..zero
        };
        // SAFETY: the buffers live until the requests are done.
        ok(unsafe { tutti_start(world.handle(rank), &call, request) });
        if rank == 0 {
            // SAFETY: any handle may be passed.
            unsafe {
                assert_eq!(tutti_request_test(*request), TUTTI_IN_PROGRESS);
                assert_eq!(tutti_request_wait(*request, 1), TUTTI_IN_PROGRESS);
                assert_eq!(tutti_request_wait(*request, -7), TUTTI_INVALID_ARGUMENT);
            }
        }
    }
    for request in requests {
        // SAFETY: any handle may be passed.
        unsafe {
            ok(tutti_request_wait(request, 0));
            ok(tutti_request_test(request));
            ok(tutti_request_free(request));
            ok(tutti_request_free(request));
            assert_eq!(tutti_request_test(request), TUTTI_INVALID_ARGUMENT);
            assert_eq!(last_error(), "tutti_request_test: the request was destroyed");
            assert_eq!(tutti_group_check(request.cast()), TUTTI_INVALID_ARGUMENT);
        }
    }
    assert_eq!(recv, [[3.0, 5.0]; 2]);
}

#[test]
fn a_destroyed_group_is_refused_by_every_function_and_its_peers_hear_of_it() {
    let _watchdog = watchdog();
    let world = World::new(2);
    let gone = world.handle(0);
    // SAFETY: any handle may be passed.
    unsafe {
        ok(tutti_group_destroy(gone));
        ok(tutti_group_destroy(gone));
    }
    for (name, function) in group_functions() {
        assert_eq!(function(gone), TUTTI_INVALID_ARGUMENT, "{name}");
        assert_eq!(last_error(), format!("{name}: the group was destroyed"));
    }
    let mut sum = [0.0];
    assert_eq!(all_reduce(world.handle(1), &[1.0], &mut sum), TUTTI_PEER_LOST, "{}", last_error());
    let mut alive = [7; 3];
    // SAFETY: the out-parameter has three bytes.
    ok(unsafe { tutti_group_alive(world.handle(1), alive.as_mut_ptr(), 3) });
    assert_eq!(alive, [0, 1, 7]);
}

#[test]
fn destroying_a_group_ends_a_call_of_it_in_another_thread() {
    let _watchdog = watchdog();
    let world = World::new(2);
    let waiting = world.0[0];
    std::thread::scope(|scope| {
        let call = scope.spawn(move || {
            let Rank(group) = { waiting };
            loop {
                // SAFETY: a barrier has no buffers.
                let status = unsafe { tutti_barrier(group, ptr::null_mut()) };
                // The other thread may just be asking whether this one is inside.
                if status != TUTTI_INVALID_USAGE {
                    return status;
                }
            }
        });
        // The barrier has begun when making a group of rank 0 alone, which waits for nobody, is refused.
        loop {
            let mut alone = ptr::null_mut();
            // SAFETY: the out-parameter is writable, and the array has one rank.
            let status = unsafe { tutti_group_create(waiting.0, [0].as_ptr(), 1, ptr::null(), &mut alone) };
            if status == TUTTI_INVALID_USAGE {
                break;
            }
            ok(status);
            // SAFETY: any handle may be passed.
            ok(unsafe { tutti_group_destroy(alone) });
            std::thread::yield_now();
        }
        // SAFETY: any handle may be passed.
        ok(unsafe { tutti_group_destroy(waiting.0) });
        assert_eq!(call.join().unwrap(), TUTTI_ABORTED);
    });
}

#[test]
fn the_failure_of_a_group_is_told_in_a_status_in_numbers_and_in_a_sentence() {
    let _watchdog = watchdog();
    let world = World::new(2);
    let group = world.handle(1);
    let mut failure =
        tutti_failure { struct_size: size_of::<tutti_failure>(), status: 9, rank: 9, collective: 9, sequence: 9 };
    let mut text = [0; 512];
    let mut needed = 99;
    // SAFETY: the struct is as large as it says, the text as large as the call says.
    unsafe {
        ok(tutti_group_check(group));
        ok(tutti_group_failure(group, &mut failure));
        assert_eq!((failure.status, failure.rank, failure.collective, failure.sequence), (0, -1, -1, 0));
        ok(tutti_group_error(group, text.as_mut_ptr(), text.len(), &mut needed));
        assert_eq!((needed, text[0]), (0, 0));

        ok(tutti_group_abort(world.handle(0)));
        assert_eq!(tutti_group_check(group), TUTTI_ABORTED);
        ok(tutti_group_failure(group, &mut failure));
        assert_eq!((failure.status, failure.rank), (TUTTI_ABORTED, 0));
        ok(tutti_group_error(group, text.as_mut_ptr(), text.len(), &mut needed));
        let sentence = CStr::from_ptr(text.as_ptr()).to_str().unwrap();
        assert_eq!((sentence, needed), (last_error().as_str(), sentence.len()));
    }
    let mut sum = [0.0];
    assert_eq!(all_reduce(group, &[1.0], &mut sum), TUTTI_ABORTED);
}

#[test]
fn a_cpu_group_is_its_own_cpu_sibling_and_explains_itself() {
    let world = World::new(1);
    let group = world.handle(0);
    let (mut cpu, mut needed) = (ptr::null_mut(), 0);
    // SAFETY: the out-parameters are writable.
    unsafe {
        ok(tutti_group_cpu(group, &mut cpu));
        assert_eq!(cpu, group);
        for format in [TUTTI_FORMAT_TEXT, TUTTI_FORMAT_JSON] {
            ok(tutti_explain(
                group,
                TUTTI_ALL_REDUCE,
                8,
                TUTTI_FLOAT16,
                TUTTI_MAX,
                0,
                format,
                ptr::null_mut(),
                0,
                &mut needed,
            ));
            let mut text = vec![0u8; needed + 1];
            ok(tutti_explain(
                group,
                TUTTI_ALL_REDUCE,
                8,
                TUTTI_FLOAT16,
                TUTTI_MAX,
                0,
                format,
                text.as_mut_ptr().cast(),
                text.len(),
                &mut needed,
            ));
            assert_eq!(CStr::from_bytes_with_nul(&text).unwrap().to_bytes().len(), needed, "the text fits exactly");
            assert!(needed > 0);
        }
        let refused = tutti_explain(group, 0, 8, TUTTI_FLOAT16, 0, 0, 2, ptr::null_mut(), 0, &mut needed);
        assert_eq!(refused, TUTTI_INVALID_ARGUMENT);
    }
}

#[test]
fn a_capture_session_over_cpu_groups_takes_each_group_once() {
    let world = World::new(2);
    let (one, two) = (world.handle(0), world.handle(1));
    let mut capture = ptr::null_mut();
    // SAFETY: the arrays have the lengths they are passed with.
    unsafe {
        assert_eq!(tutti_capture_begin([one, two, one].as_ptr(), 3, &mut capture), TUTTI_INVALID_ARGUMENT);
        assert!(last_error().contains("groups[2] is named twice"), "{}", last_error());
        ok(tutti_capture_begin([one, two].as_ptr(), 2, &mut capture));
        ok(tutti_capture_commit(capture));
        ok(tutti_capture_destroy(capture));
    }
}

#[test]
fn in_a_forked_child_every_function_says_so() {
    let world = World::new(1);
    let group = world.handle(0);
    let functions = group_functions();
    // SAFETY: the child calls functions of this library, which return at once there, and leaves without any handler.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let mut made = ptr::dangling_mut();
            let wrong = functions.iter().position(|(_, function)| function(group) != TUTTI_INVALID_USAGE);
            let others = [
                tutti_world_create(ptr::null(), &mut made),
                tutti_group_destroy(group),
                tutti_request_test(ptr::null_mut()),
                tutti_batch_begin(),
            ];
            let refused = others.iter().all(|status| *status == TUTTI_INVALID_USAGE);
            let named = CStr::from_ptr(tutti_last_error()).to_bytes().windows(6).any(|word| word == b"forked");
            libc::_exit(match wrong {
                Some(index) => 100 + index as i32,
                None => i32::from(!(refused && made.is_null() && named)),
            });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        assert!(libc::WIFEXITED(status), "the child ended with {status:#x}");
        assert_eq!(libc::WEXITSTATUS(status), 0, "1: others; 100 and up: the function with that number");
        ok(tutti_group_check(group));
    }
}
