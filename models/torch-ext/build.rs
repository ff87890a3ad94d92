//! Compiles the C++ shim against the same libtorch that torch-sys links.

use std::env;
use std::path::PathBuf;

/// Compiled once per instruction set; the shim chooses at run time.
const KERNELS: &str = "group_norm_silu.c";

fn main() {
    let files = [
        "shim.cpp",
        "fused.cpp",
        "fused.h",
        "guarded.h",
        "profile.cpp",
        "profile.h",
        "distributed.cpp",
        "nccl.cpp",
        "nccl.h",
        "include",
        KERNELS,
    ];
    for file in files {
        println!("cargo:rerun-if-changed=src/{file}");
    }
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    for name in ["LIBTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_USE_PYTORCH", "CXX"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    // torch-sys exports the folder of the libraries, however it found them (LIBTORCH, LIBTORCH_LIB or a Python torch);
    // the headers lie beside them unless LIBTORCH_INCLUDE names another folder.
    let lib = PathBuf::from(env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys exports its library folder"));
    let root = env::var_os("LIBTORCH_INCLUDE").filter(|_| env::var_os("LIBTORCH_USE_PYTORCH").is_none());
    let root = root.map_or_else(|| lib.join(".."), PathBuf::from);
    let include = root.join("include");
    assert!(
        include.join("ATen/ATen.h").is_file(),
        "libtorch's headers are not in {}: run `make setup`, or set LIBTORCH to the folder of a libtorch 2.11",
        include.display()
    );
    let mut shim = cc::Build::new();
    if x86 {
        shim.define("EXT_X86", None);
    }
    shim.cpp(true)
        .std("c++17")
        .pic(true)
        .opt_level(2)
        .debug(false)
        .warnings(true)
        .extra_warnings(true)
        // As a system folder, so that libtorch's headers cause no warnings.
        .flag("-isystem")
        .flag(&include)
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include"))
        // What libtorch's headers include and its wheels lack.
        .flag("-isystem")
        .flag("src/include")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        // As libtorch itself is built: some of its classes have more fields without it.
        .define("NDEBUG", None)
        .file("src/shim.cpp")
        .file("src/distributed.cpp")
        .file("src/nccl.cpp")
        .file("src/fused.cpp")
        .file("src/profile.cpp")
        .compile("torch_ext_shim");
    compile_kernels("baseline", &[]);
    if x86 {
        compile_kernels("avx2", &["-mavx2", "-mfma"]);
        compile_kernels("avx512", &["-mavx512f", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]);
    }
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}

fn compile_kernels(variant: &str, flags: &[&str]) {
    let mut build = cc::Build::new();
    build.opt_level(3).pic(true).debug(false).warnings(true).extra_warnings(true).define("VARIANT", variant);
    // Vector code needs these flags; they change no result.
    for flag in ["-fno-math-errno", "-fno-trapping-math"].iter().chain(flags) {
        build.flag(flag);
    }
    // Otherwise GCC computes what follows from the limits of the exponential's argument beforehand, for every element: a
    // product with a denormal number, which takes the processor a hundred cycles.
    build.flag_if_supported("-fno-thread-jumps");
    build.file(format!("src/{KERNELS}")).compile(&format!("torch_ext_kernels_{variant}"));
}
