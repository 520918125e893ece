//! Compiles the stub of the driver, for the tests and for the bench of the host's share.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The folder that has it, as `libcuda.so.1`; compiled if it is older than its sources. Several processes may ask at once.
pub(crate) fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stub");
        std::fs::create_dir_all(&folder).expect("a folder for the stub");
        let lock = File::create(folder.join("lock")).expect("a lock");
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("the lock is taken");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (kernels, cpu) = (root.join("src/cuda/kernels"), root.join("tests/kernels/cpu"));
        let mut sources: Vec<PathBuf> = ["float32", "float16", "bfloat16", "integers", "movement"]
            .map(|one| kernels.join(format!("{one}.cu")))
            .into();
        sources.extend([cpu.join("machine.cpp"), cpu.join("fibers.cpp"), root.join("tests/cuda/stub/driver.cpp")]);
        let stub = folder.join("libcuda.so.1");
        let newest =
            [&kernels, &cpu, &root.join("tests/cuda/stub")].into_iter().filter_map(|folder| newest_in(folder)).max();
        if modified(&stub).zip(newest).is_some_and(|(stub, newest)| stub > newest) {
            return folder;
        }
        let compiled: Vec<_> = sources
            .iter()
            .map(|source| {
                let object = folder.join(source.file_name().unwrap()).with_extension("o");
                let child = Command::new("g++")
                    .args(["-std=c++17", "-O1", "-fPIC", "-w", "-DTUTTI_ON_CPU", "-x", "c++", "-c"])
                    .args([format!("-I{}", kernels.display()), format!("-I{}", cpu.display())])
                    .arg(source)
                    .arg("-o")
                    .arg(&object)
                    .spawn()
                    .expect("g++ compiles the stub (install g++)");
                (object, child)
            })
            .collect();
        let mut link = Command::new("g++");
        link.args(["-shared", "-pthread", "-ldl", "-o"]).arg(folder.join("new"));
        for (object, mut child) in compiled {
            assert!(child.wait().expect("g++ ends").success(), "g++ compiles {}", object.display());
            link.arg(object);
        }
        assert!(link.status().expect("g++ links the stub").success());
        std::fs::rename(folder.join("new"), &stub).expect("the stub is put in its place");
        folder
    })
}

fn newest_in(folder: &Path) -> Option<std::time::SystemTime> {
    std::fs::read_dir(folder).ok()?.filter_map(|entry| modified(&entry.ok()?.path())).max()
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}
