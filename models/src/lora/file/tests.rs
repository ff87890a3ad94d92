//! What a LoRA file may contain, and what is refused.

use super::*;

const KEYS: [&str; 2] = ["unet.block.to_q.lora_A.weight", "unet.block.to_q.lora_B.weight"];

fn tensor(shape: &[i64], seed: u64) -> Tensor {
    torch_ext::Generator::cpu(seed).and_then(|mut generator| generator.normal(shape)).expect("numbers")
}

/// Reads a file of these tensors and metadata.
fn read(tensors: &[(&str, Tensor)], metadata: &[(&str, &str)]) -> Result<LoraFile> {
    let folder = tempfile::tempdir().expect("a folder");
    let tensors = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone())).collect();
    write_safetensors(&folder.path().join(LORA_FILE), &tensors, metadata).expect("written");
    LoraFile::read(folder.path())
}

fn layer(rank: i64) -> [(&'static str, Tensor); 2] {
    [(KEYS[0], tensor(&[rank, 3], 1)), (KEYS[1], tensor(&[5, rank], 2))]
}

#[test]
fn alpha_comes_from_its_tensor_the_metadata_or_the_rank() {
    let scaled = |tensors: &[(&str, Tensor)], metadata: &[(&str, &str)]| {
        let layer = read(tensors, metadata).expect("a good file").layers.remove(0);
        (layer.rank(), layer.alpha, layer.scaling)
    };
    assert_eq!(scaled(&layer(4), &[]), (4, 4.0, 1.0));
    let says = |json: &'static str| [(METADATA_KEY, json)];
    assert_eq!(scaled(&layer(4), &says(r#"{"unet.lora_alpha": 6}"#)), (4, 6.0, 1.5));
    let stabilized = says(r#"{"unet.lora_alpha": 6, "unet.use_rslora": true}"#);
    assert_eq!(scaled(&layer(4), &stabilized), (4, 6.0, 3.0));
    let pattern = says(r#"{"unet.lora_alpha": 6, "unet.alpha_pattern": {"to_k": 7, "to_q": 1}}"#);
    assert_eq!(scaled(&layer(4), &pattern), (4, 1.0, 0.25));
    let [a, b] = layer(4);
    let own = [a, b, ("unet.block.to_q.alpha", Tensor::from(8.0f32))];
    assert_eq!(scaled(&own, &pattern), (4, 8.0, 2.0));
}

#[test]
fn files_that_are_no_adapter_are_refused() {
    let refused = |tensors: &[(&str, Tensor)]| read(tensors, &[]).expect_err("it is broken").to_string();
    let [a, b] = layer(2);
    for whole in [&a, &b] {
        let message = refused(&[(whole.0, whole.1.shallow_clone())]);
        assert!(message.starts_with(&format!("`{}` has no matching A or B in ", whole.0)), "{message}");
    }
    let shapes: [[&[i64]; 2]; 5] =
        [[&[6], &[5, 2]], [&[2, 3], &[10]], [&[2, 3], &[5, 1]], [&[2, 3], &[5, 3]], [&[0, 3], &[5, 0]]];
    for [a, b] in shapes {
        let message = refused(&[
            (KEYS[0], Tensor::zeros(a, (Kind::Float, tch::Device::Cpu))),
            (KEYS[1], Tensor::zeros(b, (Kind::Float, tch::Device::Cpu))),
        ]);
        let said = format!("`{}` {a:?} and `{}` {b:?} are not [rank, in] and [out, rank]", KEYS[0], KEYS[1]);
        assert!(message.ends_with(&said), "{message}");
    }
    assert!(refused(&[]).ends_with("contains no LoRA tensors"));
    assert!(
        refused(&[("unet.conv_in.weight", tensor(&[2], 1))]).contains("`unet.conv_in.weight` matches no linear layer")
    );
    let nowhere = tempfile::tempdir().expect("a folder");
    let message = LoraFile::read(nowhere.path()).expect_err("it is empty").to_string();
    assert!(message.ends_with(&format!("has neither {LORA_FILE} nor {PEFT_FILE}")), "{message}");
}

#[test]
fn a_checkpoint_is_merged_by_factor_and_scale_and_taken_apart_again() {
    let metadata = [(METADATA_KEY, r#"{"unet.lora_alpha": 6}"#)];
    let mut file = read(&layer(4), &metadata).expect("a good file");
    assert_eq!(file.n_parameters(), 4 * 3 + 5 * 4);
    let delta = layer(4)[1].1.matmul(&layer(4)[0].1) * 1.5;
    for (shape, kind, tolerance) in [(&[5, 3][..], Kind::Float, 1e-6), (&[5, 3, 1, 1][..], Kind::Half, 1e-3)] {
        let original = tensor(shape, 3).to_kind(kind);
        let mut unet = NamedTensors::from([("block.to_q.weight".to_owned(), original.copy())]);
        file.merge_into(&mut unet, 0.5).expect("it fits");
        let merged = unet["block.to_q.weight"].shallow_clone();
        assert_eq!((merged.kind(), merged.size()), (kind, shape.to_vec()));
        let wanted = original.to_kind(Kind::Float) + (&delta * 0.5).view(shape);
        test_support::assert_close("merged", &merged, &wanted, tolerance);
        file.merge_into(&mut unet, -0.5).expect("it fits");
        test_support::assert_close("taken apart", &unet["block.to_q.weight"], &original, tolerance);
    }
    let mut refused = |name: &str, shape: &[i64]| {
        let mut unet = NamedTensors::from([(name.to_owned(), tensor(shape, 3))]);
        file.merge_into(&mut unet, 1.0).expect_err("it does not fit").to_string()
    };
    assert!(refused("block.to_k.weight", &[5, 3]).contains("matches no linear layer"));
    assert!(refused("block.to_q.weight", &[5, 3, 3, 3]).contains("matches no linear layer"));
    for shape in [[5, 4], [6, 3]] {
        let message = refused("block.to_q.weight", &shape);
        assert!(message.contains("`unet.block.to_q.lora_") && message.contains("shape"), "{message}");
    }
}

/// peft 0.21.2's `get_pattern_key` says the same of each.
#[test]
fn alpha_patterns_are_pefts_regular_expressions() {
    let alpha = |patterns: &str, module: &str| {
        let metadata = format!(r#"{{"unet.lora_alpha": 6, "unet.alpha_pattern": {patterns}}}"#);
        Hints::read(Path::new("lora.safetensors"), &HashMap::from([(METADATA_KEY.to_owned(), metadata)]))
            .map(|hints| hints.alpha_of(module).expect("all layers have one"))
    };
    let module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    for (patterns, wanted) in [
        (r#"{"to_q": 1}"#, 1.0),
        (r#"{"attn1.to_q": 1}"#, 1.0),
        (r#"{"o_q": 1}"#, 6.0),
        (r#"{"to_q|to_k": 1}"#, 1.0),
        (r#"{".*attn1.*": 1}"#, 1.0),
        (r#"{"attn[12].to_.": 1, "to_q": 2}"#, 1.0),
        (r#"{"to_k": 1, "to_q": 2}"#, 2.0),
        (r#"{"^mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 1}"#, 1.0),
        (r#"{"^attn1.to_q": 1}"#, 6.0),
        (r#"{"(?!mid).*to_q": 1}"#, 1.0),
        (r#"{"mid(?=_block).*": 1}"#, 1.0),
        ("{}", 6.0),
    ] {
        assert_eq!(alpha(patterns, module).expect("good patterns"), wanted, "{patterns}");
    }
    let message = alpha(r#"{"to_(q": 1}"#, module).expect_err("a broken pattern").to_string();
    assert!(message.contains("`to_(q` is not a regular expression"), "{message}");
    let message = alpha(r#"{"to_q": "1"}"#, module).expect_err("no number").to_string();
    assert!(message.contains("the alpha of `to_q` is not a number"), "{message}");
}

#[test]
fn files_of_kohyas_scripts_are_read_and_merged() {
    let [(_, a), (_, b)] = layer(2);
    let name = "lora_unet_block_to_q";
    let keys = [format!("{name}.lora_down.weight"), format!("{name}.lora_up.weight"), format!("{name}.alpha")];
    let alpha = Tensor::from(4.0f32);
    for convolution in [false, true] {
        let shaped =
            |tensor: &Tensor| if convolution { tensor.unsqueeze(-1).unsqueeze(-1) } else { tensor.shallow_clone() };
        let tensors = [(&*keys[0], shaped(&a)), (&*keys[1], shaped(&b)), (&*keys[2], alpha.shallow_clone())];
        let mut file = read(&tensors, &[]).expect("a good file");
        assert_eq!((file.layers[0].rank(), file.layers[0].alpha, file.layers[0].scaling), (2, 4.0, 2.0));
        let shape: &[i64] = if convolution { &[5, 3, 1, 1] } else { &[5, 3] };
        let original = tensor(shape, 3);
        let mut unet = NamedTensors::from([("block.to_q.weight".to_owned(), original.copy())]);
        file.merge_into(&mut unet, 1.0).expect("it fits");
        let wanted = original + (b.matmul(&a) * 2.0).view(shape);
        test_support::assert_close("merged", &unet["block.to_q.weight"], &wanted, 1e-6);
    }
}

#[test]
fn what_is_not_a_plain_lora_is_named() {
    let refused = |tensors: &[(&str, Tensor)], metadata: &[(&str, &str)]| {
        read(tensors, metadata).expect_err("it is of another kind").to_string()
    };
    let with = |key: &'static str| {
        let [a, b] = layer(2);
        refused(&[a, b, (key, tensor(&[2], 5))], &[])
    };
    for (key, said) in [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "adapts the text encoder"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "adapts the text encoder"),
        ("lora_unet_block_to_q.dora_scale", "is of a DoRA"),
        ("unet.block.to_q.lora_magnitude_vector", "is of a DoRA"),
        ("lora_unet_block_to_q.lokr_w1", "is of a LoKr"),
        ("lora_unet_block_to_q.hada_w1_a", "is of a LoHa"),
        ("lora_unet_block_to_q.oft_blocks", "is of an OFT"),
        ("lora_unet_block_conv1.lora_mid.weight", "adapts a convolution"),
        ("unet.block.to_q.lora_B.bias", "is the bias of a LoRA"),
        ("diffusion_model.input_blocks.1.1.proj_in.lora_x", "names a layer as Stability's"),
        ("single_transformer_blocks.0.attn.x", "is it of another model?"),
    ] {
        let message = with(key);
        assert!(message.contains(&format!("tensor `{key}` ")) && message.contains(said), "{message}");
    }
    let conv = [(KEYS[0], tensor(&[2, 3, 3, 3], 1)), (KEYS[1], tensor(&[5, 2, 1, 1], 2))];
    assert!(refused(&conv, &[]).contains("adapts a 3×3 convolution"));
    for (config, said) in [
        (r#"{"unet.init_lora_weights": "pissa_niter_16"}"#, "changes the model's own weights"),
        (r#"{"unet.init_lora_weights": "OLoRA"}"#, "changes the model's own weights"),
        (r#"{"unet.use_dora": true}"#, "key `use_dora` makes it a DoRA"),
        (r#"{"unet.modules_to_save": ["conv_in"]}"#, "with whole layers of its own"),
        (r#"{"unet.layer_replication": [[0, 1]]}"#, "replicated layers"),
        (r#"{"unet.peft_type": "LOKR"}"#, "key `peft_type` is \"LOKR\""),
    ] {
        let message = refused(&layer(2), &[(METADATA_KEY, config)]);
        assert!(message.contains(said), "{message}");
    }
    let plain = r#"{"unet.init_lora_weights": "eva", "unet.use_dora": false, "unet.modules_to_save": [], "unet.peft_type": "LORA"}"#;
    read(&layer(2), &[(METADATA_KEY, plain)]).expect("a plain LoRA");
}

#[test]
fn numbers_that_are_not_finite_are_refused_in_the_file_and_in_the_sum() {
    for value in [f64::NAN, f64::INFINITY] {
        let [(_, a), b] = layer(2);
        let broken = a.copy();
        drop(broken.get(1).get(2).fill_(value));
        let message = read(&[(KEYS[0], broken), b], &[]).expect_err("a number is not finite").to_string();
        assert!(message.ends_with(&format!("`{}` contains numbers that are not finite", KEYS[0])), "{message}");
    }
    let mut file = read(&layer(2), &[]).expect("a good file");
    let original = tensor(&[5, 3], 3).to_kind(Kind::Half);
    let mut unet = NamedTensors::from([("block.to_q.weight".to_owned(), original.copy())]);
    let message = file.merge_into(&mut unet, 1e6).expect_err("it overflows").to_string();
    assert!(message.ends_with("the weight of `block.to_q` exceeds the range of Half"), "{message}");
    assert_eq!(unet["block.to_q.weight"], original);
}

#[test]
fn two_tensors_of_one_layer_are_refused() {
    let [(_, a), b] = layer(2);
    let message = read(&[(KEYS[0], a.copy()), b, ("base_model.model.block.to_q.lora_A.weight", a)], &[]);
    let message = message.expect_err("which one is meant?").to_string();
    assert!(message.ends_with("are of the same layer"), "{message}");
}

#[test]
fn keys_of_every_generation_name_the_same_layer() {
    let layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
    let cases = [
        (format!("unet.{layer}.to_q.lora_A.weight"), "to_q"),
        (format!("unet.{layer}.to_q.lora_A.default_0.weight"), "to_q"),
        (format!("base_model.model.{layer}.to_out.0.lora_B.weight"), "to_out.0"),
        (format!("unet.{layer}.to_v.lora.down.weight"), "to_v"),
        (format!("unet.{layer}.to_v.lora_linear_layer.up.weight"), "to_v"),
        (format!("unet.{layer}.processor.to_k_lora.down.weight"), "to_k"),
        (format!("{layer}.processor.to_out_lora.up.weight"), "to_out.0"),
        (format!("unet.{layer}.to_k.alpha"), "to_k"),
        (format!("unet.{layer}.processor.to_k_lora.alpha"), "to_k"),
    ];
    for (key, name) in cases {
        let (module, part) = split_key(&key).expect("a known form");
        assert_eq!(module, format!("{layer}.{name}"), "{key}");
        let is_a = key.contains("lora_A") || key.contains("down.weight");
        let expected = if key.ends_with("alpha") {
            "alpha"
        } else if is_a {
            "a"
        } else {
            "b"
        };
        let found = match part {
            Part::A => "a",
            Part::B => "b",
            Part::Alpha => "alpha",
        };
        assert_eq!(found, expected, "{key}");
    }
    assert!(split_key("unet.conv_in.weight").is_none());
    assert!(split_key("unet.x.to_q.lora_magnitude_vector.weight").is_none());
}
