//! What an ONNX file may contain, and what is refused.

use proto::{Attribute, Function, Model, Node, Training};

use super::*;

fn refused(bytes: Vec<u8>) -> String {
    Graph::parse(bytes).expect_err("it is refused").to_string()
}

fn model(node: Node) -> Model {
    Model { graph: Some(proto::Graph { node: vec![node], ..Default::default() }), ..Default::default() }
}

/// Returns an operator with a graph in an attribute.
fn branch(graph: proto::Graph) -> Node {
    Node { attribute: vec![Attribute { g: vec![graph], ..Default::default() }], ..Default::default() }
}

#[test]
fn what_cannot_be_decoded_is_refused_in_a_sentence() {
    for (bytes, what) in [
        (&[0x28][..], "Model.model_version: invalid varint"),
        (&[0xff; 12], "invalid varint"),
        (&[0x00, 0x00], "invalid tag value: 0"),
        (&[0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0x00], "invalid key value: 34359738368"),
        (&[0x3a, 0x05, 0x00], "Model.graph: buffer underflow"),
        (&[0x3a, 0x02, 0x0a, 0x02, 0x12, 0x00], "Model.graph: delimited length exceeded"),
        (&[0x3f], "invalid wire type value: 7"),
        (&[0x38, 0x01], "Model.graph: invalid wire type: Varint (expected LengthDelimited)"),
        (&[0x3a, 0x05, 0x0a, 0x03, 0x22, 0x01, 0xff], "Node.op_type: invalid string value: data is not UTF-8 encoded"),
        (&[0xa3, 0x06, 0xac, 0x06], "unexpected end group tag"),
    ] {
        assert_eq!(refused(bytes.to_vec()), format!("it cannot be decoded ({what})"), "{bytes:?}");
    }
    let nested =
        (0..40).fold(Node::default(), |node, _| branch(proto::Graph { node: vec![node], ..Default::default() }));
    assert_eq!(refused(model(nested).encode_to_vec()), "its graphs nest too deep");
}

#[test]
fn a_file_of_more_parts_than_memory_is_spent_on_is_refused() {
    let decoded = |bytes: &[u8], mut steps| decode::<proto::Graph>(bytes.to_vec().into(), &mut steps);
    let operators = [0x0a, 0x00].repeat(100);
    assert_eq!(decoded(&operators, 201).expect("few enough").node.len(), 100);
    // The steps run out at every kind of place, a number without an end among them.
    for bytes in [&operators[..], &[0x0a, 0x02, 0x22, 0x00, 0x12, 0xff, 0xff]] {
        for steps in 0..6 {
            assert_eq!(decoded(bytes, steps), Err(GraphError::Steps), "{bytes:?} in {steps} steps");
        }
    }
    let tensor = proto::Tensor { dims: vec![1; 100], ..Default::default() };
    assert_eq!(decode::<proto::Tensor>(tensor.encode_to_vec().into(), &mut 50), Err(GraphError::Steps));
}

/// Where a field occurs twice, parsers merge both messages, so the location in the first one counts.
#[test]
fn a_tensor_in_another_file_hides_nowhere() {
    let tensor = |name: &str, data_location| {
        let tensor = proto::Tensor { name: name.to_owned(), data_location, ..Default::default() };
        Bytes::from(tensor.encode_to_vec())
    };
    let two = || vec![tensor("outside", 1), tensor("inside", 0)];
    let in_graph = || proto::Graph { initializer: two(), ..Default::default() };
    let sparse = || vec![SparseTensor { values: two(), ..Default::default() }];
    let indices = || vec![SparseTensor { indices: two(), ..Default::default() }];
    let attributes = || {
        [
            Attribute { t: two(), ..Default::default() },
            Attribute { tensors: two(), ..Default::default() },
            Attribute { g: vec![in_graph(), proto::Graph::default()], ..Default::default() },
            Attribute { graphs: vec![in_graph()], ..Default::default() },
            Attribute { sparse_tensor: sparse(), ..Default::default() },
            Attribute { sparse_tensors: indices(), ..Default::default() },
        ]
    };
    let in_node = |attribute| Node { attribute: vec![attribute], ..Default::default() };
    let mut models: Vec<Model> = attributes().map(|attribute| model(in_node(attribute))).to_vec();
    let with_functions = |function| {
        let function = Function { domain: "own".to_owned(), ..function };
        Model { functions: vec![function], ..model(Node::default()) }
    };
    for attribute in attributes() {
        models.push(with_functions(Function { node: vec![in_node(attribute.clone())], ..Default::default() }));
        models.push(with_functions(Function { attribute_proto: vec![attribute], ..Default::default() }));
    }
    let with_training = |training| Model { training_info: vec![training], ..model(Node::default()) };
    models.push(with_training(Training { initialization: vec![in_graph()], ..Default::default() }));
    models.push(with_training(Training { algorithm: vec![in_graph()], ..Default::default() }));
    models.push(model(branch(proto::Graph { sparse_initializer: sparse(), ..Default::default() })));
    models.push(Model { graph: Some(in_graph()), ..Default::default() });
    for model in models {
        // Another graph behind it is merged with it.
        let bytes = [model.encode_to_vec(), vec![0x3a, 0x00]].concat();
        assert!(refused(bytes).starts_with("its tensor `outside` lies in another file"), "{model:?}");
    }
}

fn function(name: &str, domain: &str, node: Vec<Node>) -> Function {
    Function { name: name.to_owned(), domain: domain.to_owned(), node, ..Default::default() }
}

fn call(name: &str, domain: &str) -> Node {
    Node { op_type: name.to_owned(), domain: domain.to_owned(), ..Default::default() }
}

/// Tags above 32 bits, whose low bits are a known field: other parsers take them for it.
#[test]
fn a_tag_out_of_range_is_refused() {
    let node = call("Identity", "").encode_to_vec();
    // Field 4, `op_type`, plus 2^32.
    let smuggled = [&node[..], &[0xa2, 0x80, 0x80, 0x80, 0x10, 0x0d], b"RandomUniform"].concat();
    let graph = [&[0x0a, smuggled.len() as u8][..], &smuggled].concat();
    let model = [&[0x3a, graph.len() as u8][..], &graph].concat();
    assert!(refused(model).starts_with("it cannot be decoded (Graph.node: invalid key value"));
    // Field 13, `external_data`, plus 2^32.
    let tensor = [&[0x42, 0x01, b'w'][..], &[0xea, 0x80, 0x80, 0x80, 0x10, 0x00]].concat();
    let graph = proto::Graph { initializer: vec![tensor.into()], ..Default::default() };
    let model = Model { graph: Some(graph), ..Default::default() }.encode_to_vec();
    assert!(refused(model).starts_with("it cannot be decoded (invalid key value"));
}

#[test]
fn a_function_in_a_built_in_operator_set_is_refused() {
    for domain in ["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"] {
        let functions = vec![function("RandomUniformLike", domain, vec![call("Identity", "")])];
        let model = Model { functions, ..model(call("RandomUniformLike", domain)) };
        let message = refused(model.encode_to_vec());
        assert!(message.starts_with("it defines the function RandomUniformLike in the built-in"), "{message}");
    }
    let functions = vec![function("RandomUniformLike", "own", vec![call("Identity", "")])];
    let model = Model { functions, ..model(call("RandomUniformLike", "own")) };
    Graph::parse(model.encode_to_vec()).expect("its own function, in its own set");
}

#[test]
fn calls_of_functions_are_counted_as_often_as_they_happen() {
    let tenfold = |n: usize| {
        let mut functions = vec![function("f0", "own", vec![call("Sqrt", "")])];
        functions.extend((1..=n).map(|i| {
            let calls = vec![call(&format!("f{}", i - 1), "own"); 10];
            // Calls within a branch count too.
            let graph = proto::Graph { node: calls, ..Default::default() };
            function(&format!("f{i}"), "own", vec![branch(graph)])
        }));
        Model { functions, ..model(call(&format!("f{n}"), "own")) }.encode_to_vec()
    };
    Graph::parse(tenfold(4)).expect("11,111 operators and calls");
    assert_eq!(refused(tenfold(9)), "its functions call each other so often that it has more than 200000 operators");
    let circle = vec![function("f", "own", vec![call("g", "own")]), function("g", "own", vec![call("f", "own")])];
    let circle = Model { functions: circle, ..model(call("f", "own")) };
    assert_eq!(refused(circle.encode_to_vec()), GraphError::Circle.to_string());
}

#[test]
fn training_mode_is_refused() {
    let normalization = |attribute: Vec<Attribute>, outputs: &[&str]| Node {
        attribute,
        output: outputs.iter().map(|&name| name.to_owned()).collect(),
        ..call("BatchNormalization", "")
    };
    let mode = |i, reference: &str| Attribute {
        name: "training_mode".to_owned(),
        i,
        ref_attr_name: reference.to_owned(),
        ..Default::default()
    };
    let dropout = |mode: &str| Node { input: ["x", "ratio", mode].map(str::to_owned).to_vec(), ..call("Dropout", "") };
    let training = [
        normalization(vec![mode(Some(1), "")], &["y"]),
        normalization(vec![mode(None, "given")], &["y"]),
        normalization(vec![], &["y", "mean", "var"]),
        dropout("flag"),
        call("BiasDropout", "com.microsoft"),
    ];
    for node in training {
        let message = refused(model(node.clone()).encode_to_vec());
        assert!(message.starts_with(&format!("its operator {} is in training mode", node.op_type)), "{message}");
        let within = proto::Graph { node: vec![node], ..Default::default() };
        refused(model(branch(within)).encode_to_vec());
    }
    assert!(refused(model(call("Sampling", "com.microsoft")).encode_to_vec()).contains("draws random numbers"));
    let flag =
        proto::Tensor { name: "flag".to_owned(), data_type: BOOL, raw_data: vec![0].into(), ..Default::default() };
    for node in [
        normalization(vec![mode(Some(0), "")], &["y", ""]),
        dropout(""),
        Node { input: vec!["x".to_owned()], ..call("Dropout", "") },
        dropout("flag"),
    ] {
        let graph =
            proto::Graph { node: vec![node], initializer: vec![flag.encode_to_vec().into()], ..Default::default() };
        Graph::parse(Model { graph: Some(graph), ..Default::default() }.encode_to_vec()).expect("for inference");
    }
}

#[test]
fn what_a_tensor_holds_is_not_copied() {
    let tensor = proto::Tensor { raw_data: vec![7; 32].into(), ..Default::default() };
    let graph = proto::Graph { initializer: vec![tensor.encode_to_vec().into()], ..Default::default() };
    let (file, mut steps) = (Bytes::from(graph.encode_to_vec()), 100);
    let graph: proto::Graph = decode(file.clone(), &mut steps).expect("a graph");
    let tensor: proto::Tensor = decode(graph.initializer[0].clone(), &mut steps).expect("a tensor");
    assert_eq!(tensor.raw_data.as_ptr(), file[file.len() - 32..].as_ptr());
}
