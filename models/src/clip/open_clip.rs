//! CLIP in the naming of OpenAI's repository and of open_clip, as which networks that were trained with them are published
//! (HPSv2, CSD): names and tensors become those of transformers, sizes are those of the shapes.

use std::path::Path;

use tch::Tensor;

use crate::clip::config::{Activation, ClipConfig, TextConfig, VisionConfig};
use crate::error::{Error, Result};
use crate::json::MAX_SIDE;
use crate::params::NamedTensors;
use crate::weights::{axis_length, number_of_layers};

/// Epsilon of every layer norm.
const EPS: f64 = 1e-5;
/// The id that stands for 'the highest id of the sequence', at which open_clip takes the pooled state.
const HIGHEST_ID: i64 = 2;

/// Parts of names, and what transformers calls them; the first match replaces.
const TOP: [(&str, &str); 12] = [
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("visual.proj", "visual_projection.weight"),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("ln_final.", "text_model.final_layer_norm."),
    ("text_projection", "text_projection.weight"),
];
/// The same within a layer.
const LAYER: [(&str, &str); 5] = [
    (".ln_1.", ".layer_norm1."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
];
/// Numbers and a mask that some files contain and no network needs.
const IGNORED: [&str; 4] = ["attn_mask", "context_length", "input_resolution", "vocab_size"];

/// Renames the tensors of a file in OpenAI's naming: projections are transposed, the three in one of attention are taken
/// apart. Unknown names stay as they are.
pub(crate) fn to_transformers(tensors: NamedTensors) -> Result<NamedTensors> {
    let mut named = NamedTensors::new();
    for (name, tensor) in tensors {
        if IGNORED.contains(&name.as_str()) {
            continue;
        }
        let mut new = match TOP.iter().find(|(old, _)| name.starts_with(old)) {
            Some((old, new)) => format!("{new}{}", &name[old.len()..]),
            None => name,
        };
        if let Some((old, layer)) = LAYER.iter().find(|(old, _)| new.contains(old)) {
            new = new.replacen(old, layer, 1);
        }
        if let Some((layer, kind)) = new.split_once(".attn.in_proj_")
            && tensor.size().first().is_some_and(|rows| rows % 3 == 0)
        {
            let rows = tensor.size()[0] / 3;
            for (i, part) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
                let part = format!("{layer}.self_attn.{part}.{kind}");
                named.insert(part, tensor.f_narrow(0, i as i64 * rows, rows)?);
            }
        } else if new.ends_with("_projection.weight") && tensor.dim() == 2 {
            named.insert(new, tensor.f_tr()?.f_contiguous()?);
        } else {
            named.insert(new, tensor);
        }
    }
    Ok(named)
}

/// Reads the sizes of both towers from tensors in OpenAI's naming.
pub(crate) fn config(path: &Path, tensors: &NamedTensors, activation: Activation) -> Result<ClipConfig> {
    let axis = |name: &str, axis: usize| axis_length(path, tensors, name, axis);
    let projection_dim = axis("text_projection", 1)?;
    let hidden_size = axis("ln_final.weight", 0)?;
    let text_config = TextConfig {
        vocab_size: axis("token_embedding.weight", 0)?,
        hidden_size,
        intermediate_size: axis("transformer.resblocks.0.mlp.c_fc.weight", 0)?,
        projection_dim,
        num_hidden_layers: number_of_layers(tensors, "transformer.resblocks", "ln_1.weight"),
        num_attention_heads: heads(path, hidden_size, false)?,
        max_position_embeddings: axis("positional_embedding", 0)?,
        hidden_act: activation,
        layer_norm_eps: EPS,
        pad_token_id: None,
        bos_token_id: None,
        eos_token_id: HIGHEST_ID,
    };
    let vision_config = vision_config(path, tensors, activation, projection_dim)?;
    Ok(ClipConfig { text_config, vision_config, projection_dim, logit_scale_init_value: (1.0f64 / 0.07).ln() })
}

/// Reads the sizes of the image tower, whose names begin with `visual.`, from tensors in OpenAI's naming.
pub(crate) fn vision_config(
    path: &Path,
    tensors: &NamedTensors,
    activation: Activation,
    projection_dim: i64,
) -> Result<VisionConfig> {
    let axis = |name: &str, axis: usize| axis_length(path, tensors, name, axis);
    let hidden_size = axis("visual.ln_post.weight", 0)?;
    let patch_size = axis("visual.conv1.weight", 2)?;
    let grid = ((axis("visual.positional_embedding", 0)? - 1) as f64).sqrt() as i64;
    let image_size = grid * patch_size;
    if !(1..=MAX_SIDE).contains(&image_size) {
        let message = format!("its images have {image_size} pixels per side, at most {MAX_SIDE} are supported");
        return Err(Error::Input(format!("{}: {message}: is it a CLIP?", path.display())));
    }
    Ok(VisionConfig {
        hidden_size,
        intermediate_size: axis("visual.transformer.resblocks.0.mlp.c_fc.weight", 0)?,
        projection_dim,
        num_hidden_layers: number_of_layers(tensors, "visual.transformer.resblocks", "ln_1.weight"),
        num_attention_heads: heads(path, hidden_size, true)?,
        num_channels: 3,
        image_size,
        patch_size,
        hidden_act: activation,
        layer_norm_eps: EPS,
    })
}

/// Number of attention heads, which no shape tells: they are 64 wide, but for the image towers of ViT-H, ViT-g and
/// ViT-bigG, which have 16 wider ones.
fn heads(path: &Path, width: i64, of_images: bool) -> Result<i64> {
    match width {
        1280 | 1408 | 1664 if of_images => Ok(16),
        _ if width % 64 == 0 => Ok(width / 64),
        _ => Err(Error::Input(format!("{}: a tower is {width} wide, which is no multiple of 64", path.display()))),
    }
}

/// Removes a prefix of names; names without it stay.
pub(crate) fn without_prefix(tensors: NamedTensors, prefix: &str) -> NamedTensors {
    let rename = |(name, tensor): (String, Tensor)| match name.strip_prefix(prefix) {
        Some(rest) => (rest.to_owned(), tensor),
        None => (name, tensor),
    };
    tensors.into_iter().map(rename).collect()
}
