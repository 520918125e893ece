//! Elements on their way between the memory of a device and the host's, or within it.
//!
//! Copies are enqueued on two streams of the transfer's own, one for each direction, and a [`Copies`] says when they are
//! over. Runs of one length and distance are one copy. Nothing here waits but [`Ferry::settle`], which ends in time, and
//! nothing here knows a plan.

use std::{
    ffi::c_void,
    ptr,
    time::{Duration, Instant},
};

use super::{super::cursor::Stretch, convey::Place};
use crate::{
    config::Timeout,
    cuda::{
        device::Device,
        driver::{self, Copy2d, CopyEnd, Stream},
        lane::Mark,
    },
    error::{Error, Result, Status},
};

/// How long whoever gives copies up waits for them to end. They depend on nothing but the device.
const SETTLING: Duration = Duration::from_secs(10);

/// A direction, which has a stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// From where tensors are read.
    Out,
    /// To where they are written.
    Home,
}

/// The ways to and from a device.
pub(super) struct Ferry {
    device: &'static Device,
    streams: [Stream; 2],
    /// For what is under way, from when it is begun.
    timeout: Timeout,
}

// SAFETY: streams of the driver may be used from any thread.
unsafe impl Send for Ferry {}
// SAFETY: as above.
unsafe impl Sync for Ferry {}

impl Ferry {
    /// For the memory of this device.
    pub(super) fn new(ordinal: i32, timeout: Timeout) -> Result<Ferry> {
        let device = Device::open(ordinal)?;
        let _entered = device.enter()?;
        let mut ferry = Ferry { device, streams: [ptr::null_mut(); 2], timeout };
        for stream in &mut ferry.streams {
            // SAFETY: `stream` is writable.
            unsafe { device.driver.stream_create(stream, driver::STREAM_NON_BLOCKING) }
                .map_err(|error| error.during(format_args!("a stream of {device} for a transfer")))?;
        }
        Ok(ferry)
    }

    /// The device.
    pub(super) fn device(&self) -> &'static Device {
        self.device
    }

    /// Enqueues copies of as many bytes from one place to another, of which one at least is on the device.
    ///
    /// # Safety
    /// So many bytes are left on both sides, readable and writable there and apart, until the copies are over.
    pub(super) unsafe fn copy(&self, way: Way, from: &mut Place, to: &mut Place, bytes: u64) -> Result<()> {
        let _entered = self.device.enter()?;
        let (driver, stream) = (self.device.driver, self.streams[way as usize]);
        let mut left = bytes as usize;
        while left > 0 {
            let (Some(source), Some(target)) = (from.cursor.stretch(left), to.cursor.stretch(left)) else {
                return Err(Error::Internal("a copy beyond the end of a chunk".into()));
            };
            let width = source.run.min(target.run);
            let (source, target) = (Rows::of(source, width), Rows::of(target, width));
            let height = source.count.min(target.count);
            // SAFETY: the caller's promises: the rows are within what is left.
            let copied = unsafe {
                if height > 1 {
                    let copy = Copy2d { from: source.end_of(from), to: target.end_of(to), width, height };
                    driver.memcpy_2d_async(&copy, stream)
                } else {
                    driver.memcpy_async(target.start(to) as u64, source.start(from) as u64, width, stream)
                }
            };
            copied.map_err(|error| error.during(format_args!("a copy for a transfer on {}", self.device)))?;
            from.cursor.skip(width * height);
            to.cursor.skip(width * height);
            left -= width * height;
        }
        Ok(())
    }

    /// What says when the copies that were enqueued so far are over.
    pub(super) fn copies(&self, way: Way) -> Result<Copies> {
        self.behind(self.streams[way as usize], "copies of a transfer")
    }

    /// What says when everything that is on a caller's stream now is over.
    pub(super) fn work_of(&self, stream: *mut c_void) -> Result<Copies> {
        let is_captured = self.device.is_capturing(stream).map_err(|error| {
            Error::invalid(format_args!("a transfer behind stream {stream:p} ({error}): is it of {}?", self.device))
        })?;
        if is_captured {
            return Err(Error::Unsupported("a transfer goes through the host and cannot be captured".into()));
        }
        self.behind(stream, "what was on the stream before a transfer")
    }

    /// Waits until nothing that was enqueued here goes on; `false` if the device does not come to an end.
    pub(super) fn settle(&self) -> bool {
        let until = Instant::now() + SETTLING;
        let is_over = |stream: &Stream| {
            // Where the driver reports an error, the device runs nothing of this context any more.
            let Ok(mark) = Mark::behind(self.device, *stream) else { return true };
            while matches!(mark.is_passed(), Ok(false)) {
                if Instant::now() > until {
                    return false;
                }
                std::thread::yield_now();
            }
            true
        };
        self.streams.iter().filter(|stream| !stream.is_null()).all(is_over)
    }

    fn behind(&self, stream: Stream, what: &'static str) -> Result<Copies> {
        let mark = Mark::behind(self.device, stream)?;
        Ok(Copies { mark, what, device: self.device, until: self.timeout.deadline() })
    }
}

impl Drop for Ferry {
    fn drop(&mut self) {
        let Ok(_entered) = self.device.enter() else { return };
        for stream in self.streams.iter().filter(|stream| !stream.is_null()) {
            // SAFETY: the stream is ours, and destroyed once; the driver lets what is on it come to its end.
            let _ = unsafe { self.device.driver.stream_destroy(*stream) };
        }
    }
}

/// Something that a device does.
pub(super) struct Copies {
    mark: Mark,
    what: &'static str,
    device: &'static Device,
    until: Option<Instant>,
}

impl Copies {
    /// Whether it is over. It has failed if it has taken longer than a group waits.
    pub(super) fn are_over(&self) -> Result<bool> {
        let over = self.mark.is_passed()?;
        if !over && self.until.is_some_and(|until| Instant::now() > until) {
            let text = format!("{} on {} did not end before the group's deadline", self.what, self.device);
            return Err(Error::failed(Status::Timeout, None, text));
        }
        Ok(over)
    }
}

/// A stretch as rows of a given width.
struct Rows {
    offset: i64,
    pitch: usize,
    count: usize,
}

impl Rows {
    /// `width`: at most a run of the stretch. What cannot be rows is one.
    fn of(stretch: Stretch, width: usize) -> Rows {
        let Stretch { offset, run, stride, count } = stretch;
        match usize::try_from(stride) {
            // A run may be as many rows as fit.
            _ if count == 1 => Rows { offset, pitch: width, count: run / width },
            Ok(pitch) if run == width && pitch >= width && pitch <= driver::MAX_PITCH => Rows { offset, pitch, count },
            _ => Rows { offset, pitch: width, count: 1 },
        }
    }

    fn start(&self, place: &Place) -> *mut u8 {
        place.memory.wrapping_offset(self.offset as isize)
    }

    fn end_of(&self, place: &Place) -> CopyEnd {
        let start = self.start(place);
        let (kind, host, device) = match place.is_on_device {
            true => (driver::END_ON_DEVICE, ptr::null_mut(), start as u64),
            false => (driver::END_ON_HOST, start.cast(), 0),
        };
        CopyEnd { skipped: [0; 2], kind, host, device, array: ptr::null_mut(), pitch: self.pitch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_what_one_copy_can_reach() {
        let rows = |run, stride, count, width| {
            let rows = Rows::of(Stretch { offset: 8, run, stride, count }, width);
            (rows.pitch, rows.count)
        };
        assert_eq!(rows(64, 100, 5, 64), (100, 5));
        assert_eq!(rows(64, 0, 1, 16), (16, 4), "a run is as many rows as fit");
        assert_eq!(rows(64, 0, 1, 24), (24, 2));
        assert_eq!(rows(64, 100, 5, 32), (32, 1), "half rows come one by one");
        assert_eq!(rows(64, 0, 5, 64), (64, 1), "the same row again and again");
        assert_eq!(rows(64, -100, 5, 64), (64, 1));
        assert_eq!(rows(64, 1 << 40, 5, 64), (64, 1));
    }
}
