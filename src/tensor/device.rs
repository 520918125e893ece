//! Tensors in the memory of a device: in a message each has a *stand-in*, dense, in host memory that the device copies from
//! and to. Where one side's tensor is does not matter to the other.

use std::{borrow::Cow, sync::Arc, time::Instant};

use super::{View, manifest};
use crate::{
    config::Timeout,
    cuda::{
        device::Device,
        driver::{self, Address},
        lane::{GLANCE, Mark},
        pinned::Pinned,
    },
    error::{Error, Result, Status},
    group::Group,
};

/// What stands in for tensors of a device.
pub(super) struct StandIns {
    /// `None` where there are none.
    device: Option<&'static Device>,
    stream: driver::Stream,
    all: Vec<StandIn>,
}

struct StandIn {
    /// Which of the views it stands for.
    index: usize,
    memory: Pinned,
    original: Address,
    bytes: usize,
}

// SAFETY: the stream and the tensors are the caller's, who promises their use from any thread until the dict is over.
unsafe impl Send for StandIns {}

impl StandIns {
    /// The views with stand-ins in the place of those on the device of `group`, which may be a group without one.
    pub(super) fn of<'a>(group: &Group, views: &'a [View], stream: usize) -> Result<(Cow<'a, [View]>, Self)> {
        let mut stand_ins = StandIns { device: None, stream: stream as driver::Stream, all: Vec::new() };
        if views.iter().all(|view| view.device == manifest::Device::Host) {
            return Ok((Cow::Borrowed(views), stand_ins));
        }
        let Some(ordinal) = group.device() else {
            return Err(Error::Unsupported(
                "a tensor is in the memory of a device, and this is a CPU group: send it by the CUDA group".into(),
            ));
        };
        let device = Device::open(ordinal)?;
        stand_ins.device = Some(device);
        let mut on_host = views.to_vec();
        for (index, view) in on_host.iter_mut().enumerate().filter(|(_, view)| view.device == manifest::Device::Cuda) {
            let wrong = |error: Error| Error::invalid(format_args!("tensor {:?}: {error}", view.name));
            if !view.shape.is_dense() {
                return Err(Error::Unsupported(format!(
                    "tensor {:?} is in the memory of a device with gaps between its elements: make it contiguous",
                    view.name
                )));
            }
            let (original, bytes) = (view.data as Address, view.shape.count() as usize * view.dtype.size());
            if device.owned(original, bytes as u64).map_err(wrong)?.is_none() && bytes > 0 {
                return Err(wrong(Error::invalid(format_args!("{original:#x} is memory of the host"))));
            }
            let memory = Pinned::with(device, bytes)?;
            view.data = memory.start();
            stand_ins.all.push(StandIn { index, memory, original, bytes });
        }
        if device.is_capturing(stand_ins.stream)? {
            return Err(Error::Unsupported(
                "tensors of a device go through the host in a dict, which cannot be captured".into(),
            ));
        }
        Ok((Cow::Owned(on_host), stand_ins))
    }

    /// Fills them behind what is on the stream, and waits for that.
    pub(super) fn fill(&mut self, group: &Group, timeout: Timeout) -> Result<()> {
        let Some(mark) = self.copy(|one| (one.memory.start() as Address, one.original))? else { return Ok(()) };
        let timeout = timeout.or(group.timeout());
        let deadline = timeout.deadline();
        while !mark.is_passed()? {
            group.check()?;
            Group::go_on();
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Error::failed(
                    Status::Timeout,
                    None,
                    "the tensors of a dict could not be copied from the device in time: what is on its stream does not end",
                ));
            }
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// Enqueues what has come to them to the tensors they stand for, and puts those into `places`.
    pub(super) fn bring_home(mut self, places: &mut [*mut u8]) -> Result<()> {
        for one in &self.all {
            places[one.index] = one.original as *mut u8;
        }
        self.copy(|one| (one.original, one.memory.start() as Address)).map(drop)
    }

    /// Copies on the stream, and keeps the memory until that is over.
    fn copy(&mut self, ends: impl Fn(&StandIn) -> (Address, Address)) -> Result<Option<Arc<Mark>>> {
        let Some(device) = self.device else { return Ok(None) };
        let _entered = device.enter()?;
        for one in self.all.iter_mut().filter(|one| one.bytes > 0) {
            one.memory.keep();
            let (to, from) = ends(one);
            // SAFETY: the stand-in is ours and the tensor the caller's, both as long as that until the copy is over.
            unsafe { device.driver.memcpy_async(to, from, one.bytes, self.stream) }
                .map_err(|error| error.during(format_args!("a copy of a tensor between the host and {device}")))?;
        }
        let mark = Arc::new(Mark::behind(device, self.stream)?);
        self.all.iter_mut().for_each(|one| one.memory.keep_until(&mark));
        Ok(Some(mark))
    }
}
