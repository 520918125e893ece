//! The C header: that it is the one the sources make, that every dialect takes it alone, and that it tells the truth
//! about the library's version.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The files of src/capi with C functions and types in them, in the order in which the header shows them.
const SOURCES: [&str; 15] = [
    "types",
    "text",
    "log",
    "world",
    "group",
    "layout",
    "collectives",
    "request",
    "tensor",
    "queue",
    "memory",
    "capture",
    "transfer_types",
    "transfer_plan",
    "transfer",
];

/// What a compiler may not say about the header.
const WARNINGS: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"];

#[test]
fn the_committed_header_is_the_one_the_sources_make() {
    let generated = generate();
    let path = root().join("include/tutti.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        fs::create_dir_all(root().join("include")).unwrap();
        fs::write(&path, &generated).unwrap();
        return;
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let differs = generated.lines().zip(committed.lines()).position(|(new, old)| new != old);
    assert!(
        generated == committed,
        "include/tutti.h differs from what src/capi makes, from line {} on; run UPDATE_HEADER=1 cargo test --test header",
        differs.unwrap_or(generated.lines().count().min(committed.lines().count())) + 1
    );
}

#[test]
fn every_dialect_of_c_takes_the_header_alone_and_twice() {
    for dialect in ["c99", "c11", "c17", "c2x"] {
        compile("cc", &["-x", "c", &format!("-std={dialect}")], dialect);
    }
}

#[test]
fn every_dialect_of_cpp_takes_the_header_alone_and_twice() {
    for dialect in ["c++11", "c++14", "c++17", "c++20"] {
        compile("c++", &["-x", "c++", &format!("-std={dialect}")], dialect);
    }
}

#[test]
fn the_header_has_the_version_of_the_library() {
    let header = generate();
    for (part, value) in [
        ("MAJOR", env!("CARGO_PKG_VERSION_MAJOR")),
        ("MINOR", env!("CARGO_PKG_VERSION_MINOR")),
        ("PATCH", env!("CARGO_PKG_VERSION_PATCH")),
    ] {
        let line = format!("#define TUTTI_VERSION_{part} {value}\n");
        assert!(header.contains(&line), "cbindgen.toml lacks {line:?}, which Cargo.toml says");
    }
}

#[test]
fn every_exported_function_is_declared() {
    let header = generate();
    let mut functions = 0;
    for entry in fs::read_dir(root().join("src/capi")).unwrap() {
        let source = fs::read_to_string(entry.unwrap().path()).unwrap();
        for name in source.split("extern \"C\" fn ").skip(1).filter_map(|rest| rest.split('(').next()) {
            if name.starts_with("tutti_") {
                functions += 1;
                assert!(header.contains(&format!("{name}(")), "{name} is not declared: its file is missing in SOURCES");
            }
        }
    }
    assert!(functions > 40, "only {functions} functions found in src/capi");
}

#[test]
fn comments_are_written_for_c() {
    for (number, line) in generate().lines().enumerate() {
        for rust in ["# Safety", "# Errors", "# Panics", "[`", "::new", "&mut", "Option<"] {
            assert!(!line.contains(rust), "line {} speaks Rust: {line}", number + 1);
        }
    }
}

/// The header as the sources make it.
fn generate() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root().join("src/capi").join(source).with_extension("rs"));
    }
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    String::from_utf8(header).unwrap()
}

/// Compiles a file that includes nothing but the header, twice, and uses every initialiser.
fn compile(compiler: &str, arguments: &[&str], dialect: &str) {
    let source = "#include <tutti.h>\n#include <tutti.h>\n\
        int main(void);\n\
        int main(void) {\n\
            tutti_world_options_t world = TUTTI_WORLD_OPTIONS_INIT;\n\
            tutti_group_options_t group = TUTTI_GROUP_OPTIONS_INIT;\n\
            tutti_layout_options_t layout = TUTTI_LAYOUT_OPTIONS_INIT;\n\
            tutti_queue_options_t queue = TUTTI_QUEUE_OPTIONS_INIT;\n\
            tutti_tensor_t tensor = TUTTI_TENSOR_INIT;\n\
            tutti_dict_options_t dict = TUTTI_DICT_OPTIONS_INIT;\n\
            tutti_call_t call = TUTTI_CALL_INIT;\n\
            tutti_failure_t failure = TUTTI_FAILURE_INIT;\n\
            struct tutti_call *tagged = &call;\n\
            return (int)(world.struct_size + group.struct_size + tagged->struct_size + failure.struct_size + layout.struct_size + queue.struct_size + tensor.struct_size + dict.struct_size)\n\
                + TUTTI_SUCCESS + (TUTTI_VERSION > 0) + (TUTTI_UNIQUE_ID_BYTES == 128);\n\
        }\n";
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("header-{dialect}.txt"));
    fs::write(&file, source).unwrap();
    let output = Command::new(compiler)
        .args(WARNINGS)
        .args(arguments)
        .arg("-I")
        .arg(root().join("include"))
        .arg(&file)
        .output()
        .unwrap_or_else(|error| panic!("{compiler} cannot be run: {error}"));
    assert!(output.status.success(), "{compiler} -std={dialect}:\n{}", String::from_utf8_lossy(&output.stderr));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
