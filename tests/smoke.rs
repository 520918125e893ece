use std::sync::{Arc, Mutex};
use tutti::{communicator::*, config::*, dtype::*, group::*};

fn call(collective: Collective, count: usize, send: *const f32, recv: *mut f32) -> Call {
    Call { descriptor: Descriptor { collective, dtype: DType::Float32, op: Op::Sum, root: 0, flags: 0, count: count as u64 }, send: send.cast(), recv: recv.cast() }
}

fn world(size: u32, selection: &str) -> Vec<Arc<Group>> {
    let group = GroupOptions { communicators: Selection::parse(selection).unwrap(), timeout: Timeout::from_ms(20000).unwrap(), ..Default::default() };
    Group::world_local(size, WorldOptions { group, ..Default::default() }).unwrap()
}

#[test]
fn all_reduce_works() {
    for selection in ["=shm", "=sockets"] {
        for size in [1, 2, 3, 4, 8] {
            let groups = world(size, selection);
            std::thread::scope(|s| for g in &groups { s.spawn(move || {
                for count in [0usize, 1, 7, 1000, 4096, 5000, 100_000, 3] {
                    let send: Vec<f32> = (0..count).map(|i| (i % 17) as f32 + g.rank() as f32).collect();
                    let mut recv = vec![0f32; count];
                    g.run(call(Collective::AllReduce, count, send.as_ptr(), recv.as_mut_ptr()), Timeout::Default).unwrap();
                    for i in 0..count { let want = (0..size).map(|r| (i % 17) as f32 + r as f32).sum::<f32>(); assert_eq!(recv[i], want, "{selection} {size} {count} {i}"); }
                    let mut inplace = send.clone();
                    g.run(call(Collective::AllReduce, count, inplace.as_ptr(), inplace.as_mut_ptr()), Timeout::Default).unwrap();
                    assert_eq!(inplace, recv);
                }
                let d = call(Collective::AllReduce, 5000, std::ptr::null(), std::ptr::null_mut()).descriptor;
                if g.rank() == 0 { println!("{}", g.explain(&d, tutti::dispatch::Format::Text).unwrap()); }
            }); });
        }
    }
}

#[test]
fn one_thread_drives_all_in_reverse() {
    let groups = world(4, "all".replace("all", "").as_str());
    let count = 1 << 18;
    let mut buffers: Vec<Vec<f32>> = (0..4).map(|r| vec![r as f32; count]).collect();
    let requests: Vec<_> = groups.iter().zip(&mut buffers).map(|(g, b)| g.start(call(Collective::AllReduce, count, b.as_ptr(), b.as_mut_ptr()), Timeout::Default).unwrap()).collect();
    for r in requests.iter().rev() { assert_eq!(r.wait(Timeout::Default).unwrap(), Progress::Done); }
    assert!(buffers.iter().flatten().all(|x| *x == 6.0));
    // batch creation of TP and PP groups
    let made: Arc<Mutex<Vec<Arc<Group>>>> = Default::default();
    batch::begin().unwrap();
    for list in [[0u32, 1], [2, 3], [0, 2], [1, 3]] { for r in list {
        let made = made.clone();
        groups[r as usize].create(&list, GroupOptions::default(), Box::new(move |g| made.lock().unwrap().push(g.unwrap()))).unwrap();
    } }
    batch::end().unwrap();
    assert_eq!(made.lock().unwrap().len(), 8);
    for g in made.lock().unwrap().iter() { println!("{} {}/{}", g.name(), g.rank(), g.size()); }
}

#[test]
fn latency() {
    for selection in ["=shm", "=sockets"] {
    let groups = world(2, selection);
    std::thread::scope(|s| for g in &groups { s.spawn(move || {
        for count in [2usize, 256, 2048, 16384, 1<<18] {
            let send = vec![1f32; count]; let mut recv = vec![0f32; count];
            let n = if selection == "=shm" { (20_000_000 / (count + 1000)).min(100000) } else { 200 };
            let t = std::time::Instant::now();
            for _ in 0..n { g.run(call(Collective::AllReduce, count, send.as_ptr(), recv.as_mut_ptr()), Timeout::Default).unwrap(); }
            if g.rank() == 0 { println!("{selection} {} B: {:.3} us", count*4, t.elapsed().as_secs_f64()*1e6/n as f64); }
        }
    }); });
    }
}
