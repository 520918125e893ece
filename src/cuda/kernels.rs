//! The kernels as the host sees them: embedded PTX, loaded into a device, found by what a call needs.
//!
//! What is in them, and how they wait for each other, is told in `kernels/README.md`.

use std::{
    ffi::{CString, c_int},
    ptr,
};

use super::{device::Device, driver, params::MAX_THREADS};
use crate::{
    dtype::{Collective, DType},
    error::{Error, Result},
};

/// The way in which data travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The sender writes into the receiver's memory.
    Push,
    /// The receiver reads from the sender's.
    Pull,
}

/// One kernel.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// To launch it.
    pub(super) function: driver::Function,
    /// Blocks of [`MAX_THREADS`] threads that fit on the device at once.
    pub(super) resident: u32,
}

/// All kernels, in one device.
pub(super) struct Kernels {
    all: Vec<Kernel>,
}

// SAFETY: functions of a module may be launched from any thread.
unsafe impl Send for Kernels {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Kernels {}

/// A module for every device from sm_80 on, and for those that launch dependents early: PTX, packed by `build.rs`.
type Module = (&'static [u8], &'static [u8]);

macro_rules! module {
    ($name:literal) => {
        (
            include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".compute_80.ptx.z")),
            include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".compute_90.ptx.z")),
        )
    };
}
const MODULES: [Module; 5] =
    [module!("float32"), module!("float16"), module!("bfloat16"), module!("integers"), module!("movement")];

/// The element types that have kernels of their own, and the module of each.
const TYPES: [(&str, usize); 6] =
    [("float32", 0), ("float16", 1), ("bfloat16", 2), ("int8", 3), ("int32", 3), ("int64", 3)];
const MOVEMENT: usize = 4;
/// In the order of [`index`].
const REDUCING: [&str; 6] = [
    "all_reduce_push_one_shot",
    "all_reduce_push_two_shot",
    "all_reduce_pull_one_shot",
    "all_reduce_pull_two_shot",
    "reduce_scatter_push",
    "reduce_scatter_pull",
];
const MOVING: [&str; 4] = ["all_gather_push", "all_gather_pull", "broadcast_push", "broadcast_pull"];

/// The first architecture whose kernels may be launched before the one ahead of them is complete.
pub(super) const FIRST_WITH_DEPENDENTS: u32 = 90;

/// Which dtypes the kernels reduce.
pub(super) const REDUCED: [DType; 9] = [
    DType::Int8,
    DType::Uint8,
    DType::Int32,
    DType::Uint32,
    DType::Int64,
    DType::Uint64,
    DType::Float16,
    DType::Float32,
    DType::Bfloat16,
];
/// Which collectives there are kernels for; a barrier is an all_reduce of nothing.
pub(super) const SERVED: [Collective; 5] = [
    Collective::AllReduce,
    Collective::AllGather,
    Collective::ReduceScatter,
    Collective::Broadcast,
    Collective::Barrier,
];

impl Kernels {
    /// Loads everything into the device and looks up every kernel.
    pub(super) fn load(device: &Device) -> Result<Self> {
        let _entered = device.enter()?;
        let mut modules = Vec::with_capacity(MODULES.len());
        for (for_80, for_90) in MODULES {
            let text = unpack(if device.arch >= FIRST_WITH_DEPENDENTS { for_90 } else { for_80 })?;
            let mut module = ptr::null_mut();
            // SAFETY: the text ends with NUL. The module is never unloaded, as graphs may hold its kernels.
            unsafe { device.driver.module_load_data(&mut module, text.as_ptr().cast()) }
                .map_err(|error| error.during(format_args!("loading the kernels into {device}")))?;
            modules.push(module);
        }
        let reducing = TYPES
            .iter()
            .flat_map(|(element, module)| REDUCING.iter().map(move |kernel| (format!("{kernel}_{element}"), *module)));
        let moving = MOVING.iter().map(|kernel| ((*kernel).to_owned(), MOVEMENT));
        let mut all = Vec::new();
        for (name, module) in reducing.chain(moving) {
            all.push(Kernel::find(device, modules[module], &name)?);
        }
        Ok(Kernels { all })
    }

    /// The kernel of a call, if there is one. `two_shot` matters for all_reduce alone.
    pub(super) fn of(&self, collective: Collective, dtype: DType, way: Way, two_shot: bool) -> Option<&Kernel> {
        self.all.get(index(collective, dtype, way, two_shot)?)
    }

    /// Blocks of any of these kernels that fit on the device at once.
    pub(super) fn resident(&self, way: Way) -> u32 {
        let all = SERVED.iter().flat_map(|collective| REDUCED.iter().map(move |dtype| (*collective, *dtype)));
        let kernels = all.flat_map(|(collective, dtype)| {
            [false, true].into_iter().filter_map(move |two_shot| self.of(collective, dtype, way, two_shot))
        });
        kernels.map(|kernel| kernel.resident).min().unwrap_or(0)
    }
}

impl Kernel {
    fn find(device: &Device, module: driver::Module, name: &str) -> Result<Self> {
        let text = CString::new(name).unwrap_or_default();
        let (mut function, mut per_multiprocessor) = (ptr::null_mut(), 0);
        // SAFETY: both are writable and the name ends with NUL. To be asked for its occupancy, a kernel must be loaded.
        unsafe {
            device
                .driver
                .module_get_function(&mut function, module, text.as_ptr())
                .and_then(|()| device.driver.occupancy(&mut per_multiprocessor, function, MAX_THREADS as c_int, 0))
        }
        .map_err(|error| error.during(format_args!("the kernel {name} on {device}")))?;
        Ok(Kernel { function, resident: per_multiprocessor.max(0) as u32 * device.multiprocessors })
    }
}

/// The PTX of a module.
fn unpack(module: &[u8]) -> Result<CString> {
    let text = miniz_oxide::inflate::decompress_to_vec_zlib(module).map_err(|error| error.to_string());
    text.and_then(|text| CString::new(text).map_err(|error| error.to_string()))
        .map_err(|why| Error::Internal(format!("the kernels cannot be unpacked: {why}")))
}

/// Where a kernel stands in [`Kernels::all`].
fn index(collective: Collective, dtype: DType, way: Way, two_shot: bool) -> Option<usize> {
    use Collective::*;
    let pull = usize::from(way == Way::Pull);
    let of_type = |kernel: usize| {
        let element = match dtype {
            DType::Float32 => 0,
            DType::Float16 => 1,
            DType::Bfloat16 => 2,
            DType::Int8 | DType::Uint8 => 3,
            DType::Int32 | DType::Uint32 => 4,
            DType::Int64 | DType::Uint64 => 5,
            _ => return None,
        };
        Some(element * REDUCING.len() + kernel)
    };
    match collective {
        AllReduce => of_type(2 * pull + usize::from(two_shot)),
        ReduceScatter => of_type(4 + pull),
        Barrier => Some(2 * pull),
        AllGather => Some(TYPES.len() * REDUCING.len() + pull),
        Broadcast => Some(TYPES.len() * REDUCING.len() + 2 + pull),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(module: &[u8]) -> String {
        unpack(module).unwrap().into_string().unwrap()
    }

    #[test]
    fn every_name_that_is_looked_up_is_an_entry_of_its_module() {
        let texts = MODULES.map(|(for_80, for_90)| [for_80, for_90].map(text));
        for text in texts.iter().flatten() {
            assert!(text.contains(".version 8.2"), "the driver of CUDA 12.2 must understand it");
        }
        for (element, module) in TYPES {
            for kernel in REDUCING {
                let entry = format!(".entry {kernel}_{element}(");
                assert!(texts[module].iter().all(|text| text.contains(&entry)), "{entry}");
            }
        }
        for kernel in MOVING {
            assert!(texts[MOVEMENT].iter().all(|text| text.contains(&format!(".entry {kernel}("))), "{kernel}");
        }
    }

    #[test]
    fn what_is_unpacked_is_what_is_committed() {
        let committed = include_str!("kernels/ptx/movement.compute_90.ptx");
        assert!(text(MODULES[MOVEMENT].1) == committed);
        let broken = MODULES[MOVEMENT].1.split_last().unwrap().1;
        assert!(unpack(broken).unwrap_err().to_string().contains("the kernels cannot be unpacked"));
    }

    #[test]
    fn every_call_has_a_kernel_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for collective in [Collective::AllReduce, Collective::ReduceScatter] {
            for dtype in [DType::Float32, DType::Float16, DType::Bfloat16, DType::Int8, DType::Int32, DType::Int64] {
                for way in [Way::Push, Way::Pull] {
                    assert!(seen.insert(index(collective, dtype, way, false).unwrap()));
                }
            }
        }
        assert_eq!(index(Collective::AllReduce, DType::Float64, Way::Push, false), None);
        assert_eq!(index(Collective::Broadcast, DType::Bytes, Way::Pull, true), Some(39));
    }
}
