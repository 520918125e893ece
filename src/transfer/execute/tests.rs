//! Walks over a network that exists only here: nothing is buffered, and dice decide when a message moves.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc, sync::Arc, time::Duration};

use super::{
    super::layout::Side,
    tensors::Tensors,
    walk::Walk,
    wire::{Memory, Wire},
};
use crate::{
    dtype::{DType, Op},
    error::{Error, Result},
    transfer::{Item, Layout, Mesh, Options, Placement, Plan, Transport},
};

const WORLD: u32 = 5;

#[derive(Default)]
struct Network {
    seed: u64,
    messages: Vec<Message>,
    /// Which post fails, counted down.
    fails_at: Option<usize>,
    given_up: BTreeSet<usize>,
}

struct Message {
    from: u32,
    to: u32,
    tag: u32,
    send: bool,
    memory: Memory,
    bytes: usize,
    over: bool,
}

impl Memory {
    /// Copies a whole message between here and `buffer`.
    ///
    /// # Safety
    /// There is room for it on both sides.
    unsafe fn pass(self, send: bool, buffer: &mut [u8], dice: &mut dyn FnMut(usize) -> usize) {
        // SAFETY: the caller's promise; steps are multiples of 16 bytes but for the last.
        unsafe {
            match self {
                Memory::Place(place) if send => place.copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len()),
                Memory::Place(place) => place.copy_from_nonoverlapping(buffer.as_ptr(), buffer.len()),
                Memory::Pieces(mut pieces) => {
                    let mut rest = buffer;
                    while !rest.is_empty() {
                        let step = (16 * (1 + dice(100))).min(rest.len());
                        let streams = dice(2) == 0;
                        pieces.as_mut().pass(rest.as_mut_ptr(), step, streams);
                        rest = &mut rest[step..];
                    }
                }
            }
        }
    }
}

impl Network {
    fn random(&mut self, below: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.seed >> 33) as usize % below
    }

    fn post(&mut self, message: Message) -> Result<usize> {
        if let Some(left) = &mut self.fails_at {
            if *left == 0 {
                return Err(Error::usage("the network is down"));
            }
            *left -= 1;
        }
        let same = |other: &&Message| {
            let key = |one: &Message| (one.from, one.to, one.tag, one.send);
            !other.over && key(other) == key(&message)
        };
        assert!(!self.messages.iter().any(|other| same(&other)), "two messages of one bucket between two ranks");
        self.messages.push(message);
        Ok(self.messages.len() - 1)
    }

    /// Moves a random message whose both sides are there, from memory to memory.
    fn deliver(&mut self) {
        let open: Vec<usize> = (0..self.messages.len()).filter(|at| !self.messages[*at].over).collect();
        let pairs: Vec<(usize, usize)> = open
            .iter()
            .filter(|at| self.messages[**at].send)
            .filter_map(|at| {
                let send = &self.messages[*at];
                let is_other = |other: &&usize| {
                    let receive = &self.messages[**other];
                    !receive.send && (receive.from, receive.to, receive.tag) == (send.from, send.to, send.tag)
                };
                Some((*at, *open.iter().find(is_other)?))
            })
            .collect();
        if pairs.is_empty() {
            return;
        }
        let (send, receive) = pairs[self.random(pairs.len())];
        let (from, to) = (&self.messages[send], &self.messages[receive]);
        assert_eq!(from.bytes, to.bytes, "both sides mean the same bytes");
        let (from, to, mut buffer) = (from.memory, to.memory, vec![0; from.bytes]);
        // SAFETY: both walks promised memory or pieces until their side is over.
        unsafe {
            from.pass(true, &mut buffer, &mut |below| self.random(below));
            to.pass(false, &mut buffer, &mut |below| self.random(below));
        }
        self.messages[send].over = true;
        self.messages[receive].over = true;
    }
}

struct Link {
    rank: u32,
    network: Rc<RefCell<Network>>,
}

impl Wire for Link {
    type Ticket = usize;

    unsafe fn send(&mut self, to: u32, tag: u32, memory: Memory, bytes: u64) -> Result<usize> {
        let message = Message { from: self.rank, to, tag, send: true, memory, bytes: bytes as usize, over: false };
        self.network.borrow_mut().post(message)
    }

    unsafe fn receive(&mut self, from: u32, tag: u32, memory: Memory, bytes: u64) -> Result<usize> {
        let message = Message { from, to: self.rank, tag, send: false, memory, bytes: bytes as usize, over: false };
        self.network.borrow_mut().post(message)
    }

    fn is_over(&mut self, ticket: &mut usize) -> Result<bool> {
        Ok(self.network.borrow().messages[*ticket].over)
    }

    fn give_up(&mut self, ticket: &usize) {
        assert!(self.network.borrow_mut().given_up.insert(*ticket), "given up twice");
    }

    fn rest(&mut self, _: &[&usize], _: Duration) {}
}

/// A sum that is wanted elsewhere, an average that is cast, a broadcast, a copy, and rows that become columns.
fn items() -> Vec<Item> {
    let layout = |dtype, ranks: &[u32], placement: Placement| Layout {
        dtype,
        mesh: Mesh::new(&[ranks.len() as u64], ranks).unwrap(),
        placements: vec![placement],
    };
    let item = |name: &str, shape: &[u64], source, target| Item {
        name: name.into(),
        shape: shape.to_vec(),
        source,
        target,
        wire: None,
    };
    let (float, half) = (DType::Float32, DType::Bfloat16);
    let (all, three) = ([0, 1, 2, 3, 4], [2, 0, 4]);
    vec![
        item(
            "sum",
            &[9, 5],
            layout(float, &three, Placement::Partial(Op::Sum)),
            layout(float, &[1, 3], Placement::shard(0)),
        ),
        item(
            "average",
            &[7, 6],
            layout(float, &three, Placement::Partial(Op::Avg)),
            layout(half, &all, Placement::shard(1)),
        ),
        item(
            "broadcast",
            &[5000],
            layout(float, &[3], Placement::Replicate),
            layout(float, &all, Placement::Replicate),
        ),
        item(
            "turn",
            &[12, 10],
            layout(half, &[0, 1, 2], Placement::shard(0)),
            layout(float, &all, Placement::shard(1)),
        ),
    ]
}

/// What every contribution holds at an element, and what must arrive. Small integers: exact in every type.
fn value(index: usize) -> f32 {
    (index % 97) as f32
}

fn expected(item: usize, index: usize) -> f32 {
    // The sum of three equal contributions; all else stays.
    value(index) * if item == 0 { 3.0 } else { 1.0 }
}

/// One rank: memory for every tensor on both sides, contiguous.
struct Rank {
    tensors: Tensors,
    memory: Vec<(usize, Side, Vec<u8>)>,
}

fn number(dtype: DType, bytes: &[u8]) -> f32 {
    match dtype {
        DType::Bfloat16 => f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16),
        _ => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
    }
}

/// Calls `each` with the place in memory and the index in the whole tensor of every element of a contiguous part.
fn each_element(plan: &Plan, item: usize, side: Side, rank: u32, mut each: impl FnMut(usize, usize)) {
    let Some(region) = plan.region(item, side, rank) else { return };
    for place in 0..region.elements() as usize {
        let (mut rest, mut index, mut scale) = (place as u64, 0, 1);
        for dim in (0..region.extent.len()).rev() {
            index += (region.start[dim] + rest % region.extent[dim]) * scale;
            rest /= region.extent[dim];
            scale *= plan.shape(item)[dim];
        }
        each(place, index as usize);
    }
}

impl Rank {
    fn new(plan: &Plan, rank: u32) -> Rank {
        let mut made = Rank { tensors: Tensors::new(plan, rank, None), memory: Vec::new() };
        for item in 0..plan.item_count() {
            for side in [Side::Source, Side::Target] {
                let Some(region) = plan.region(item, side, rank) else { continue };
                let dtype = plan.dtype(item, side).unwrap();
                let mut bytes = vec![0xa5; region.elements() as usize * dtype.size()];
                if side == Side::Source {
                    each_element(plan, item, side, rank, |place, index| {
                        let bits = value(index).to_bits();
                        match dtype {
                            DType::Bfloat16 => bytes[place * 2..][..2].copy_from_slice(&bits.to_le_bytes()[2..]),
                            _ => bytes[place * 4..][..4].copy_from_slice(&bits.to_le_bytes()),
                        }
                    });
                }
                made.tensors.bind(plan, item, side, bytes.as_mut_ptr(), None).unwrap();
                made.memory.push((item, side, bytes));
            }
        }
        made.tensors.check(plan).unwrap();
        made
    }

    fn check(&self, plan: &Plan, rank: u32) {
        for (item, side, bytes) in &self.memory {
            let dtype = plan.dtype(*item, *side).unwrap();
            each_element(plan, *item, *side, rank, |place, index| {
                let found = number(dtype, &bytes[place * dtype.size()..]);
                let wanted = if *side == Side::Source { value(index) } else { expected(*item, index) };
                assert_eq!(found, wanted, "element {index} of {} on rank {rank}, {side:?}", plan.name(*item));
            });
        }
    }
}

fn plan(seed: u64) -> Arc<Plan> {
    let pick = |from: &[u64], by: u64| from[(seed / by) as usize % from.len()];
    let options = Options {
        bucket_bytes: pick(&[256, 1000, 4096, 1 << 16], 1),
        staging_bytes: 0,
        in_flight: 1 + (seed / 5 % 3) as u32,
        split_bytes: 16,
        ..Options::new(WORLD)
    };
    let plan = Arc::new(Plan::new(&items(), &options).unwrap());
    let used = plan.totals().by_transport;
    assert!(Transport::Local as usize == 2 && used.iter().all(|buckets| *buckets > 0), "{used:?}");
    plan
}

fn walks(plan: &Arc<Plan>, network: &Rc<RefCell<Network>>) -> (Vec<Rank>, Vec<Walk<Link>>) {
    let ranks = (0..WORLD).map(|rank| Rank::new(plan, rank)).collect();
    let walk = |rank| Walk::new(plan.clone(), rank, Link { rank, network: network.clone() }, None);
    (ranks, (0..WORLD).map(walk).collect())
}

#[test]
fn everything_arrives_in_whatever_order_messages_move() {
    for seed in 0..60 {
        let plan = plan(seed);
        let network = Rc::new(RefCell::new(Network { seed, ..Network::default() }));
        let (ranks, mut walks) = walks(&plan, &network);
        let mut left: Vec<usize> = (0..WORLD as usize).collect();
        let mut turns = 0;
        while !left.is_empty() {
            turns += 1;
            assert!(turns < 2_000_000, "ranks {left:?} wait for ever, seed {seed}");
            let at = network.borrow_mut().random(left.len());
            // SAFETY: the tensors were checked, and their memory outlives the walks.
            let done = unsafe { walks[left[at]].poll(&ranks[left[at]].tensors) }.unwrap();
            assert!(walks[left[at]].staged() <= plan.options().staging_bytes);
            if done {
                left.swap_remove(at);
            }
            network.borrow_mut().deliver();
        }
        assert!(network.borrow().messages.iter().all(|message| message.over), "a message that nobody awaits");
        assert!(network.borrow().given_up.is_empty());
        for rank in 0..WORLD {
            ranks[rank as usize].check(&plan, rank);
            let (buckets, _) = walks[rank as usize].done();
            assert_eq!(buckets, plan.operations(rank).len() as u64);
        }
    }
}

#[test]
fn a_network_that_fails_leaves_no_message_with_memory_that_is_gone() {
    for seed in 0..120 {
        let plan = plan(seed);
        let fails_at = Some(seed as usize * 3);
        let network = Rc::new(RefCell::new(Network { seed, fails_at, ..Network::default() }));
        let (ranks, mut walks) = walks(&plan, &network);
        let mut failed = 0;
        let mut done = BTreeSet::new();
        for turn in 0..20_000 {
            let rank = turn % WORLD as usize;
            // SAFETY: as above.
            match unsafe { walks[rank].poll(&ranks[rank].tensors) } {
                Ok(true) => drop(done.insert(rank)),
                Ok(false) => {}
                Err(_) => failed += 1,
            }
            if failed > 0 || done.len() == WORLD as usize {
                break;
            }
            network.borrow_mut().deliver();
        }
        drop(walks);
        let network = network.borrow();
        let kept = |(at, message): (usize, &Message)| !message.over && !network.given_up.contains(&at);
        assert!(!network.messages.iter().enumerate().any(kept), "a message keeps its memory, seed {seed}");
    }
}
