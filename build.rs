//! Names the shared library and pins it in memory.
//!
//! Nothing is compiled, generated or looked for here: building the crate needs cargo and a C linker only. Which symbols
//! the library exports is decided by `src/capi` and checked against `abi/symbols.txt`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let major = std::env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_else(|_| "0".into());
    // Programs record this name, so that an incompatible version can be installed beside the one they were built with.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libtutti.so.{major}");
    // dlclose must not unmap the library: the destructors of its thread-local variables would run into the hole.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
