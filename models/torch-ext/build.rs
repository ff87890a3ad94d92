//! Compiles the C++ shim against the same libtorch that torch-sys links.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/shim.cpp");
    for name in ["LIBTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_USE_PYTORCH", "CXX"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    // torch-sys says where the libraries are, however it found them (LIBTORCH, LIBTORCH_LIB or a Python torch); the
    // headers lie beside them unless LIBTORCH_INCLUDE says otherwise.
    let lib = PathBuf::from(env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys exports its library folder"));
    let root = env::var_os("LIBTORCH_INCLUDE").filter(|_| env::var_os("LIBTORCH_USE_PYTORCH").is_none());
    let root = root.map_or_else(|| lib.join(".."), PathBuf::from);
    let include = root.join("include");
    assert!(
        include.join("ATen/ATen.h").is_file(),
        "libtorch's headers are not in {}: run `make setup`, or let LIBTORCH name a libtorch 2.11",
        include.display()
    );
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .opt_level(2)
        .debug(false)
        .warnings(true)
        .extra_warnings(true)
        // As a system folder, so that warnings are ours and not those of libtorch's headers.
        .flag("-isystem")
        .flag(include)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .file("src/shim.cpp")
        .compile("torch_ext_shim");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}
