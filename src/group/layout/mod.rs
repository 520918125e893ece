//! How a world splits into groups: from sizes and the order of ranks to the rank list of every group.
//!
//! Pure: nothing here communicates, reads the machine or knows what a group does, so any rank, tool or test gets the
//! same answer from the same [`Description`]. Whoever makes the groups compares the ranks' [digests](Layout::digest)
//! first, with [`agree`].
//!
//! Every rank has a coordinate on each [`Axis`]; the groups of a [`Kind`] are the ranks that differ in the axes it
//! spans and in no others. Where ranks stand in the interconnect decides only which rank gets which coordinates, so
//! all kinds stay consistent with each other whatever the order of ranks.
//!
//! * [`Description`] — sizes, order of axes, order of ranks, labels: what all ranks must say alike;
//! * [`Layout`] — the answer: groups by kind and by rank, hosts and domains they cross;
//! * [`table`], [`json`] and [`svg`] — the answer as text, for tools, and as a picture.

mod json;
mod order;
mod svg;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result, Status};

/// The greatest world that is planned, in ranks: sixteen times the largest that anyone is known to run.
pub const MAX_WORLD: u32 = 1 << 20;

/// An independent direction in which a world is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Axis {
    /// Copies of the model that know nothing of each other.
    ExternalData = 0,
    /// Copies of the model that step together.
    Data = 1,
    /// Successive layers.
    Pipeline = 2,
    /// Parts of a prompt.
    PrefillContext = 3,
    /// Parts of each tensor.
    Tensor = 4,
}

/// All axes in the usual order, from the one whose neighbours are farthest apart to the one whose are adjacent.
pub const AXES: [Axis; 5] = [Axis::ExternalData, Axis::Data, Axis::Pipeline, Axis::PrefillContext, Axis::Tensor];

impl Axis {
    /// The name in sentences and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Axis::ExternalData => "external DP",
            Axis::Data => "DP",
            Axis::Pipeline => "PP",
            Axis::PrefillContext => "PCP",
            Axis::Tensor => "TP",
        }
    }
}

/// What the ranks of a group share work on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Tensor parallel (TP).
    Tensor = 0,
    /// Pipeline parallel (PP).
    Pipeline = 1,
    /// Data parallel within a deployment (DP).
    Data = 2,
    /// Data parallel across deployments (external DP).
    ExternalData = 3,
    /// Prefill context parallel (PCP).
    PrefillContext = 4,
    /// Decode context parallel (DCP): reuses the ranks of PCP, then of TP.
    DecodeContext = 5,
    /// Expert parallel (EP): reuses the ranks of TP, then of PCP, then of DP.
    Expert = 6,
}

/// All kinds, in the order of their numbers.
pub const KINDS: [Kind; 7] = [
    Kind::Tensor,
    Kind::Pipeline,
    Kind::Data,
    Kind::ExternalData,
    Kind::PrefillContext,
    Kind::DecodeContext,
    Kind::Expert,
];

impl Kind {
    /// The kind with this number.
    pub fn parse(code: i32) -> Result<Self> {
        KINDS.into_iter().find(|kind| *kind as i32 == code).ok_or_else(|| {
            Error::invalid(format_args!(
                "{code} is no kind of group (TP 0, PP 1, DP 2, external DP 3, PCP 4, DCP 5, EP 6)"
            ))
        })
    }

    /// The short name, which with a group's index makes its name: `tp:0`.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Tensor => "tp",
            Kind::Pipeline => "pp",
            Kind::Data => "dp",
            Kind::ExternalData => "external_dp",
            Kind::PrefillContext => "pcp",
            Kind::DecodeContext => "dcp",
            Kind::Expert => "ep",
        }
    }

    /// The axis along which the groups lie, for kinds that have one of their own.
    pub const fn axis(self) -> Option<Axis> {
        match self {
            Kind::Tensor => Some(Axis::Tensor),
            Kind::Pipeline => Some(Axis::Pipeline),
            Kind::Data => Some(Axis::Data),
            Kind::ExternalData => Some(Axis::ExternalData),
            Kind::PrefillContext => Some(Axis::PrefillContext),
            Kind::DecodeContext | Kind::Expert => None,
        }
    }

    /// The axes along which ranks of a group may differ, the one that runs slowest first. Group ranks count along
    /// them, and where a group is smaller than they are together, it takes neighbours in that counting.
    pub const fn span(self) -> &'static [Axis] {
        match self {
            Kind::Tensor => &[Axis::Tensor],
            Kind::Pipeline => &[Axis::Pipeline],
            Kind::Data => &[Axis::Data],
            Kind::ExternalData => &[Axis::ExternalData],
            Kind::PrefillContext => &[Axis::PrefillContext],
            Kind::DecodeContext => &[Axis::Tensor, Axis::PrefillContext],
            Kind::Expert => &[Axis::Data, Axis::PrefillContext, Axis::Tensor],
        }
    }
}

/// How many ranks work together in each way. 0 means 1, and for `expert` all that there are: DP x PCP x TP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Tensor parallel.
    pub tensor: u32,
    /// Pipeline parallel.
    pub pipeline: u32,
    /// Data parallel within a deployment.
    pub data: u32,
    /// Data parallel across deployments.
    pub external_data: u32,
    /// Prefill context parallel.
    pub prefill_context: u32,
    /// Decode context parallel.
    pub decode_context: u32,
    /// Expert parallel.
    pub expert: u32,
}

impl Sizes {
    /// The size of an axis.
    pub const fn axis(&self, axis: Axis) -> u32 {
        match axis {
            Axis::ExternalData => self.external_data,
            Axis::Data => self.data,
            Axis::Pipeline => self.pipeline,
            Axis::PrefillContext => self.prefill_context,
            Axis::Tensor => self.tensor,
        }
    }

    /// The size of a group.
    pub const fn group(&self, kind: Kind) -> u32 {
        match kind {
            Kind::DecodeContext => self.decode_context,
            Kind::Expert => self.expert,
            Kind::Tensor => self.tensor,
            Kind::Pipeline => self.pipeline,
            Kind::Data => self.data,
            Kind::ExternalData => self.external_data,
            Kind::PrefillContext => self.prefill_context,
        }
    }

    /// Whether these are sizes of a world of so many ranks.
    pub fn check(self, world: u32) -> Result<()> {
        self.resolve(world).map(|_| ())
    }

    /// Fills in the defaults and checks that the sizes fit each other and the world.
    fn resolve(mut self, world: u32) -> Result<Self> {
        if world == 0 || world > MAX_WORLD {
            return Err(Error::invalid(format_args!("a layout is for 1 to {MAX_WORLD} ranks, not for {world}")));
        }
        let all = [
            &mut self.tensor,
            &mut self.pipeline,
            &mut self.data,
            &mut self.external_data,
            &mut self.prefill_context,
            &mut self.decode_context,
        ];
        for size in all {
            *size = (*size).max(1);
        }
        let product = AXES.into_iter().try_fold(1_u32, |product, axis| product.checked_mul(self.axis(axis)));
        if product != Some(world) {
            let is = product.map_or("more than 4294967295".to_owned(), |product| product.to_string());
            return Err(Error::invalid(format_args!(
                "{} is {is} ranks, but the world has {world}; the product of these sizes must be the world's size",
                Product(&self, &AXES)
            )));
        }
        if self.expert == 0 {
            self.expert = self.data * self.prefill_context * self.tensor;
        }
        for kind in [Kind::DecodeContext, Kind::Expert] {
            self.fits(kind)?;
        }
        Ok(self)
    }

    /// A group that reuses ranks takes whole rows of its span: a part of the last axis, or all of it and a part of the
    /// one before, and so on. Other sizes would leave ragged groups, or ranks in none.
    fn fits(&self, kind: Kind) -> Result<()> {
        let mut rest = self.group(kind);
        for axis in kind.span().iter().rev() {
            let size = self.axis(*axis);
            if rest > size && rest.is_multiple_of(size) {
                rest /= size;
                continue;
            }
            if rest <= size && size.is_multiple_of(rest) {
                return Ok(());
            }
            break;
        }
        let span: Vec<Axis> = kind.span().iter().rev().copied().collect();
        Err(Error::invalid(format_args!(
            "{} {} does not divide {}; it must divide {}, or take all of one and divide the next",
            kind.name().to_uppercase(),
            self.group(kind),
            Product(self, &span),
            span.iter().map(|axis| axis.name()).collect::<Vec<_>>().join(", then "),
        )))
    }
}

/// Writes `PP 2 x TP 8`.
struct Product<'a>(&'a Sizes, &'a [Axis]);

impl fmt::Display for Product<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, axis) in self.1.iter().enumerate() {
            write!(f, "{}{} {}", if i == 0 { "" } else { " x " }, axis.name(), self.0.axis(*axis))?;
        }
        Ok(())
    }
}

/// Where a rank stands. The numbers are the caller's own; only their equality and order count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Label {
    /// The machine.
    pub host: u32,
    /// The interconnect domain ("supernode"), which may span hosts: equal numbers are one domain, wherever they are.
    pub domain: u32,
    /// The place within host and domain.
    pub lane: u32,
}

/// What a layout is made from. All ranks must give the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The number of ranks.
    pub world: u32,
    /// How many ranks work together in each way.
    pub sizes: Sizes,
    /// The axes, the one whose neighbours are farthest apart first.
    pub axes: [Axis; 5],
    /// The ranks in the order in which they get coordinates. Empty: as they are sorted by their labels' domain, then
    /// host, then lane; or, without labels, as they are numbered.
    pub order: Vec<u32>,
    /// Where each rank stands, by rank; empty where that is unknown.
    pub labels: Vec<Label>,
}

impl Description {
    /// Sizes in the usual order of axes, for ranks as they are numbered.
    pub fn new(world: u32, sizes: Sizes) -> Self {
        Self { world, sizes, axes: AXES, order: Vec::new(), labels: Vec::new() }
    }

    /// Plans the groups, or says in a sentence why there is no such layout.
    pub fn plan(&self) -> Result<Layout> {
        let sizes = self.sizes.resolve(self.world)?;
        if let Some(twice) = AXES.into_iter().find(|axis| !self.axes.contains(axis)) {
            return Err(Error::invalid(format_args!(
                "the order of axes lacks {}; it must name each of the five once",
                twice.name()
            )));
        }
        let order = order::resolve(self)?;
        let layout = Layout {
            world: self.world,
            sizes,
            axes: self.axes,
            groups: KINDS.map(|kind| Groups::new(kind, &sizes, &self.axes, &order)),
            digest: digest(&sizes, &self.axes, &order, &self.labels),
            labels: self.labels.clone(),
        };
        Ok(layout)
    }
}

/// The same on all ranks, processors and versions of this library for descriptions that mean the same, and only there.
fn digest(sizes: &Sizes, axes: &[Axis; 5], order: &[u32], labels: &[Label]) -> u64 {
    let mut hash = Sha256::new();
    hash.update(b"tutti layout 1");
    for kind in KINDS {
        hash.update(sizes.group(kind).to_le_bytes());
    }
    hash.update(axes.map(|axis| axis as u8));
    hash.update((order.len() as u64).to_le_bytes());
    for rank in order {
        hash.update(rank.to_le_bytes());
    }
    for label in labels {
        for number in [label.host, label.domain, label.lane] {
            hash.update(number.to_le_bytes());
        }
    }
    let hash: [u8; 32] = hash.finalize().into();
    hash.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

/// Compares the digests that the ranks found, in the order of ranks; an error names those that most others contradict.
pub fn agree(digests: &[u64]) -> Result<()> {
    let mut sorted = digests.to_vec();
    sorted.sort_unstable();
    let count = |digest: u64| {
        sorted.partition_point(|other| *other <= digest) - sorted.partition_point(|other| *other < digest)
    };
    // Of equally many, those with the lowest rank.
    let Some(most) = digests.iter().copied().rev().max_by_key(|digest| count(*digest)) else { return Ok(()) };
    let ranks = |agrees: bool| (0..digests.len()).filter(move |rank| (digests[*rank] == most) == agrees);
    let Some(first) = ranks(false).next() else { return Ok(()) };
    Err(Error::failed(
        Status::Mismatch,
        u32::try_from(first).ok(),
        format_args!(
            "the ranks describe different layouts: digest {most:016x} on {}, others on {}; no group was made; give all \
             ranks the same sizes, order of axes, order of ranks and labels",
            named(ranks(true)),
            named(ranks(false)),
        ),
    ))
}

/// `rank 3`, or `ranks 3, 4, 5` and how many more: a sentence, not a list of thousands.
fn named(mut ranks: impl Iterator<Item = usize>) -> String {
    let first: Vec<String> = ranks.by_ref().take(8).map(|rank| rank.to_string()).collect();
    let text = format!("rank{} {}", if first.len() == 1 { "" } else { "s" }, first.join(", "));
    match ranks.count() {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

/// All groups of one kind: each rank is in exactly one, and all are of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    kind: Kind,
    size: u32,
    /// Group after group.
    ranks: Vec<u32>,
    /// The place of each rank in `ranks`.
    places: Vec<u32>,
}

impl Groups {
    fn new(kind: Kind, sizes: &Sizes, axes: &[Axis; 5], order: &[u32]) -> Self {
        let size = sizes.group(kind);
        let mut ranks = vec![0; order.len()];
        for (logical, rank) in order.iter().enumerate() {
            let coordinates = coordinates(sizes, axes, logical as u32);
            let within = kind.span().iter().fold(0, |n, axis| n * sizes.axis(*axis) + coordinates[*axis as usize]);
            let outside = axes.iter().filter(|axis| !kind.span().contains(axis));
            let outside = outside.fold(0, |n, axis| n * sizes.axis(*axis) + coordinates[*axis as usize]);
            let span: u32 = kind.span().iter().map(|axis| sizes.axis(*axis)).product();
            // Groups of one span follow each other, so the place is all that is left.
            ranks[(outside * span + within) as usize] = *rank;
        }
        // Listed by their first ranks, so that the list does not depend on how ranks got their coordinates.
        let mut groups: Vec<&[u32]> = ranks.chunks_exact(size as usize).collect();
        groups.sort_unstable_by_key(|group| group[0]);
        let ranks = groups.concat();
        let mut places = vec![0; ranks.len()];
        for (place, rank) in ranks.iter().enumerate() {
            places[*rank as usize] = place as u32;
        }
        Self { kind, size, ranks, places }
    }

    /// What they are for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The ranks in each.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.ranks.len() as u32 / self.size
    }

    /// The world ranks of each group in the order of their group ranks; groups in the order of their first ranks.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.ranks.chunks_exact(self.size as usize)
    }

    /// The group that `rank` is in; `None` for a rank outside the world.
    pub fn of(&self, rank: u32) -> Option<Membership<'_>> {
        let place = *self.places.get(rank as usize)?;
        let (index, position) = (place / self.size, place % self.size);
        let ranks = self.iter().nth(index as usize)?;
        Some(Membership { index, position, ranks })
    }

    /// All ranks, group after group: what a caller's array is filled from.
    pub fn ranks(&self) -> &[u32] {
        &self.ranks
    }
}

/// A rank's place in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership<'a> {
    /// The group's number among those of its kind.
    pub index: u32,
    /// The rank's rank in the group.
    pub position: u32,
    /// The world ranks of the group, in the order of their group ranks.
    pub ranks: &'a [u32],
}

/// How far a group reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The number of hosts that its ranks stand on.
    pub hosts: u32,
    /// The number of interconnect domains that they stand in.
    pub domains: u32,
}

/// A world divided into groups of every kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    world: u32,
    sizes: Sizes,
    axes: [Axis; 5],
    groups: [Groups; KINDS.len()],
    labels: Vec<Label>,
    digest: u64,
}

impl Layout {
    /// The number of ranks.
    pub fn world(&self) -> u32 {
        self.world
    }

    /// The sizes, with no zeros left.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The order of axes.
    pub fn axes(&self) -> &[Axis; 5] {
        &self.axes
    }

    /// Where each rank stands, by rank; empty where that is unknown.
    pub fn labels(&self) -> &[Label] {
        &self.labels
    }

    /// What ranks compare to learn that they were given the same description: stable across processors and versions,
    /// equal for descriptions that mean the same.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The groups of a kind.
    pub fn groups(&self, kind: Kind) -> &Groups {
        &self.groups[kind as usize]
    }

    /// How far these ranks, of a group or not, reach; `None` where labels are unknown.
    pub fn reach(&self, ranks: &[u32]) -> Option<Reach> {
        let count = |part: fn(&Label) -> u32| {
            let mut all =
                ranks.iter().map(|rank| self.labels.get(*rank as usize).map(part)).collect::<Option<Vec<_>>>()?;
            all.sort_unstable();
            all.dedup();
            Some(all.len() as u32)
        };
        Some(Reach { hosts: count(|label| label.host)?, domains: count(|label| label.domain)? })
    }

    /// The layout as text: one line per group.
    pub fn table(&self) -> String {
        table::draw(self)
    }

    /// The layout as one JSON object.
    pub fn json(&self) -> String {
        json::draw(self)
    }

    /// The layout as an SVG picture: for each kind, the ranks as cells and the groups as colours.
    pub fn svg(&self) -> String {
        svg::draw(self)
    }
}

/// The coordinates of the `logical`-th rank, by axis.
fn coordinates(sizes: &Sizes, axes: &[Axis; 5], mut logical: u32) -> [u32; AXES.len()] {
    let mut coordinates = [0; AXES.len()];
    for axis in axes.iter().rev() {
        coordinates[*axis as usize] = logical % sizes.axis(*axis);
        logical /= sizes.axis(*axis);
    }
    coordinates
}
