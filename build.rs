//! Names the shared library, pins it in memory, and packs the GPU kernels that it carries.
//!
//! Nothing is compiled or looked for here: building the crate needs cargo and a C linker only. Which symbols the library
//! exports is decided by `src/capi` and checked against `abi/symbols.txt`.

use std::{
    io,
    path::{Path, PathBuf},
};

/// The PTX of the kernels, as it is committed.
const PTX: &str = "src/cuda/kernels/ptx";
/// How hard the packer tries: 9 would gain one percent.
const EFFORT: u8 = 6;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let major = std::env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_else(|_| "0".into());
    // Programs record this name, so that an incompatible version can be installed beside the one they were built with.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libtutti.so.{major}");
    // dlclose must not unmap the library: the destructors of its thread-local variables would run into the hole.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    pack_kernels()
}

/// Puts each file of the PTX, packed, where `src/cuda/kernels.rs` includes it: it is a tenth of its size then.
fn pack_kernels() -> io::Result<()> {
    println!("cargo::rerun-if-changed={PTX}");
    let into = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    for entry in Path::new(PTX).read_dir()? {
        let from = entry?.path();
        let name = format!("{}.z", from.file_name().unwrap_or_default().to_string_lossy());
        std::fs::write(into.join(name), miniz_oxide::deflate::compress_to_vec_zlib(&std::fs::read(&from)?, EFFORT))?;
    }
    Ok(())
}
