//! Compiling a component and running a model take place in processes of the binary, which are ended where they take too
//! much memory or time, and at Ctrl-C.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ambiguity_host::context::Context;
use ambiguity_host::interrupt::Interrupt;
use ambiguity_host::plugin::{Limits, Plugin, PluginError, PluginHost};
use ambiguity_host::processes::Processes;
use ambiguity_host::progress::Progress;
use ambiguity_models::onnx::proto::{
    Attribute, Dimension, Graph, Model, Node, OperatorSet, Shape, Size, Tensor, TensorType, Type, ValueInfo,
};
use prost::Message as _;

use super::{means, two_images};
use crate::support::{command, host, host_binary, ran, root};

/// Loads a plugin as a command does.
fn load(limits: Limits, file: &Path) -> Result<Box<dyn Plugin>, PluginError> {
    let context = Context {
        threads: 2,
        offline: true,
        progress: Progress::new(true),
        interrupt: Interrupt::default(),
        program: Some(host_binary()),
        processes: Processes::default(),
    };
    let host = PluginHost::of_command(limits, &context).expect("the sandbox starts");
    host.load(file.to_str().expect("a path in UTF-8"), BTreeMap::new())
}

/// Returns a model with an operator that multiplies two matrices of this side, whose values depend on its input.
fn multiplies(side: i64) -> Vec<u8> {
    let strings = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let node = |operator: &str, inputs: &[&str], output: &str, attribute: Vec<Attribute>| Node {
        input: strings(inputs),
        output: strings(&[output]),
        op_type: operator.to_owned(),
        attribute,
        ..Node::default()
    };
    let integers = |name: &str, values: &[i64]| {
        let raw_data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let dims = vec![values.len() as i64];
        let tensor =
            Tensor { dims, data_type: 7, name: name.to_owned(), raw_data: raw_data.into(), ..Tensor::default() };
        tensor.encode_to_vec().into()
    };
    let axes = || Attribute { name: "axes".to_owned(), ints: vec![2, 3], r#type: 7, ..Attribute::default() };
    let flat = Attribute { name: "keepdims".to_owned(), i: Some(0), r#type: 2, ..Attribute::default() };
    let value = |name: &str, dims: &[i64]| {
        let size = |&dim: &i64| if dim == 0 { Size::DimParam("n".to_owned()) } else { Size::DimValue(dim) };
        let dim = dims.iter().map(|dim| Dimension { size: Some(size(dim)) }).collect();
        let tensor = TensorType { elem_type: 1, shape: Some(Shape { dim }) };
        ValueInfo { name: name.to_owned(), r#type: Some(Type { tensor_type: Some(tensor) }) }
    };
    let graph = Graph {
        name: "multiplies".to_owned(),
        node: vec![
            node("ReduceMax", &["x"], "max", vec![]),
            node("Reshape", &["max", "one"], "scalar", vec![]),
            node("Expand", &["scalar", "square"], "a", vec![]),
            node("MatMul", &["a", "a"], "b", vec![]),
            node("ReduceMin", &["b"], "min", vec![]),
            node("ReduceMean", &["x"], "means", vec![axes(), flat]),
            node("Add", &["means", "min"], "y", vec![]),
        ],
        initializer: vec![integers("one", &[1]), integers("square", &[side, side])],
        input: vec![value("x", &[0, 3, 4, 4])],
        output: vec![value("y", &[0, 3])],
        ..Graph::default()
    };
    let opset_import = vec![OperatorSet { domain: None, version: 13 }];
    Model { ir_version: 8, graph: Some(graph), opset_import, ..Model::default() }.encode_to_vec()
}

/// Writes that model with its description beside it.
fn written(folder: &Path, side: i64) -> std::path::PathBuf {
    let file = folder.join(format!("side_{side}.onnx"));
    fs::write(&file, multiplies(side)).expect("writable");
    fs::write(file.with_extension("toml"), "styles = ['a', 'b', 'c']\noutput = 'logits'\n").expect("writable");
    file
}

/// Returns the processes that a process started.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("Linux").flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent_of = |process: &u32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name in parentheses may have spaces; the state and the parent follow.
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok()
    };
    processes.filter(|process| parent_of(process) == Some(parent)).collect()
}

#[test]
fn a_model_whose_operator_takes_long_is_ended_at_its_limit() {
    let folder = tempfile::tempdir().expect("a folder");
    let limits = Limits { timeout_ms: 300, ..Limits::default() };
    let mut plugin = load(limits, &written(folder.path(), 9000)).expect("it loads");
    let started = Instant::now();
    // The second call starts the process again.
    for _ in 0..2 {
        let message = plugin.classify(&mut two_images(), &mut means()).expect_err("20 s of work").to_string();
        assert!(message.starts_with("plugin `side_9000`: it ran longer than 300 ms"), "{message}");
    }
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    let mut small = load(limits, &written(folder.path(), 8)).expect("it loads");
    let classified = small.classify(&mut two_images(), &mut means()).expect("a small one");
    assert_eq!(classified.probabilities().len(), 2);
}

#[test]
fn a_model_that_needs_much_memory_is_refused_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut plugin = load(Limits::default(), &written(folder.path(), 40_000)).expect("it loads");
    let message = plugin.classify(&mut two_images(), &mut means()).expect_err("12 GB").to_string();
    assert_eq!(message, "plugin `side_40000`: it needs more than the 4096 MiB that a model gets");
}

/// Returns a component that takes half a minute to compile and is within all counts.
fn large() -> Vec<u8> {
    fn leb(mut value: usize) -> Vec<u8> {
        let mut bytes = vec![];
        while value > 127 {
            bytes.push((value & 127) as u8 | 128);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }
    let section = |id: u8, inside: Vec<u8>| [vec![id], leb(inside.len()), inside].concat();
    let n_functions = 16_000;
    // x = ((x * 7) ^ 3) many times: local.get 0, i32.const 7, i32.mul, i32.const 3, i32.xor …, end.
    let body = [vec![0, 0x20, 0], [0x41, 7, 0x6c, 0x41, 3, 0x73].repeat(250), vec![0x0b]].concat();
    let body = [leb(body.len()), body].concat();
    let module = [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, vec![1, 0x60, 1, 0x7f, 1, 0x7f]),
        section(3, [leb(n_functions), vec![0; n_functions]].concat()),
        section(10, [leb(n_functions), body.repeat(n_functions)].concat()),
    ];
    let around = "(component (instance $i) (export \"ambiguity:plugin/description@0.2.0\" (instance $i)) (export \"ambiguity:plugin/classifier@0.2.0\" (instance $i)))";
    let around = wat::parse_str(around).expect("it assembles");
    let (header, rest) = around.split_at(8);
    [header, &section(1, module.concat()), rest].concat()
}

#[test]
fn ctrl_c_ends_the_process_that_compiles() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("large.wasm"), large()).expect("writable");
    let mut process = command(folder.path(), &["plugin", "inspect", "./large.wasm"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let started = Instant::now();
    let compiler = loop {
        match children(process.id())[..] {
            [compiler] => break compiler,
            _ => assert!(started.elapsed() < Duration::from_secs(60), "nothing compiles"),
        }
        assert_eq!(process.try_wait().expect("ours"), None, "it ended before it compiled");
        std::thread::sleep(Duration::from_millis(5));
    };
    // SAFETY: `kill` takes two numbers, and the process is our child.
    assert_eq!(unsafe { libc::kill(process.id() as i32, libc::SIGINT) }, 0);
    let interrupted = Instant::now();
    assert_eq!(process.wait().expect("ours").code(), Some(130));
    assert!(interrupted.elapsed() < Duration::from_secs(5), "{:?}", interrupted.elapsed());
    let mut stderr = String::new();
    process.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("text");
    assert!(stderr.ends_with("plugin `large`: interrupted while it was loaded\n"), "{stderr}");
    assert!(!Path::new(&format!("/proc/{compiler}")).exists(), "it still compiles");
}

/// The process that compiles says the same of a component that is refused, and leaves nothing in the cache.
#[test]
fn what_the_compiler_refuses_is_said_by_the_command() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "(component (core module (func (result i32) (i64.const 1))) (instance $i)
        (export \"ambiguity:plugin/description@0.2.0\" (instance $i)) (export \"ambiguity:plugin/classifier@0.2.0\" (instance $i)))";
    let file = folder.path().join("bad.wasm");
    fs::write(&file, wat::parse_str(text).expect("it assembles")).expect("writable");
    let here = super::load(Limits::default(), &file, &[]).err().expect("it is invalid").to_string();
    assert!(here.contains("is damaged: "), "{here}");
    let said = host(folder.path(), &["plugin", "inspect", &file.display().to_string()]);
    assert_eq!((said.code, said.stderr), (1, format!("error: {here}\n")));
    assert!(!folder.path().join("cache/ambiguity/plugins").exists());
}

/// A plugin in the cache is loaded without a process.
#[test]
fn a_cached_plugin_needs_no_compiler() {
    let folder = tempfile::tempdir().expect("a folder");
    let inspect = || {
        let mut command = command(folder.path(), &["plugin", "inspect", "kmeans_image"]);
        command.current_dir(root());
        command
    };
    assert!(inspect().output().expect("it starts").status.success());
    // Without a folder for temporary files nothing can be passed to another process.
    let cached = inspect().env("TMPDIR", "/nowhere").output().expect("it starts");
    assert!(cached.status.success(), "{}", ran(&cached).stderr);
    fs::remove_dir_all(folder.path().join("cache")).expect("ours");
    let anew = ran(&inspect().env("TMPDIR", "/nowhere").output().expect("it starts"));
    assert!(anew.code == 1 && anew.stderr.contains("the sandbox failed: "), "{}", anew.stderr);
}
