use super::*;
use crate::can::{Discriminator, Generator as CanGenerator};
use crate::onnx::{Metadata, discriminator, generator};

fn networks() -> (CanGenerator, Discriminator) {
    let (generator, discriminator, _) = can::networks(&Reference::read("can.safetensors"));
    (generator, discriminator)
}

fn metadata(styles: &[&str]) -> Metadata {
    Metadata {
        name: "five".to_owned(),
        version: "1.0.0".to_owned(),
        title: "Five styles".to_owned(),
        authors: vec!["somebody".to_owned()],
        license: "Apache-2.0".to_owned(),
        styles: styles.iter().map(|&style| style.to_owned()).collect(),
    }
}

const STYLES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// The file does not depend on whether the parameters require gradients.
#[test]
fn the_same_weights_give_the_same_bytes() {
    let write = |train: bool| {
        let (g, d) = networks();
        if train {
            g.parameters().into_iter().chain(d.parameters()).for_each(|(_, t)| drop(t.set_requires_grad(true)));
        }
        (generator(&g, "Images").unwrap(), discriminator(&d, &metadata(&STYLES)).unwrap())
    };
    assert_eq!(write(false), write(true));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let (g, d) = networks();
    let message = discriminator(&d, &metadata(&STYLES[..4])).unwrap_err().to_string();
    assert_eq!(message, "the network classifies 5 styles, but 4 are named");
    for (_, parameter) in g.parameters() {
        drop(parameter.shallow_clone().fill_(f64::NAN));
    }
    let message = generator(&g, "Nothing").unwrap_err().to_string();
    assert!(message.starts_with("the weights `blocks.0.conv.weight` are not all finite"), "{message}");
}
