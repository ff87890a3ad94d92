//! The weights of evaluation metrics: where they are looked for, and what to say where they are missing.
//!
//! Each is found, in this order: where an option names it; in `models/weights/NAME` beside the shipped models; in the Hub's
//! cache. Nothing is downloaded unless the user asks for it.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::home::home;
use super::hub::{Hub, Wanted};
use crate::context::Context;

/// Published weights of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricWeights {
    /// The name, which is that of the folder below `models/weights`.
    pub name: &'static str,
    /// What they are, for messages.
    pub what: &'static str,
    /// The option that names their place.
    pub option: &'static str,
    /// The repositories on the Hub, with their files: of each list the first that exists.
    pub parts: &'static [(&'static str, Files)],
}

/// The files of a repository: of each list the first that exists.
pub type Files = &'static [&'static [&'static str]];

/// The aesthetic predictor.
pub const AESTHETIC: MetricWeights = MetricWeights {
    name: "aesthetic",
    what: "the aesthetic predictor's weights",
    option: "--aesthetic FILE",
    parts: &[("trl-lib/ddpo-aesthetic-predictor", &[&["aesthetic-model.pth"]])],
};
/// The files of a CLIP in transformers' format.
const CLIP_FILES: Files = &[
    &["config.json"],
    &["preprocessor_config.json"],
    &["vocab.json", "tokenizer.json"],
    &["merges.txt", "tokenizer.json"],
    &["tokenizer_config.json"],
    &["model.safetensors"],
];
/// CLIP ViT-L/14, whose embeddings the aesthetic predictor reads.
pub const CLIP_L: MetricWeights = MetricWeights {
    name: "clip-vit-large-patch14",
    what: "CLIP ViT-L/14",
    option: "--encoder clip-vit-large-patch14=DIR",
    parts: &[("openai/clip-vit-large-patch14", CLIP_FILES)],
};
/// ImageReward v1.0, and the vocabulary of BERT.
pub const IMAGE_REWARD: MetricWeights = MetricWeights {
    name: "image-reward",
    what: "ImageReward's weights and BERT's vocab.txt",
    option: "--image-reward DIR",
    parts: &[
        ("THUDM/ImageReward", &[&["ImageReward.safetensors", "ImageReward.pt"]]),
        ("google-bert/bert-base-uncased", &[&["vocab.txt"]]),
    ],
};
/// DINO ViT-S/16.
pub const DINO: MetricWeights = MetricWeights {
    name: "dino",
    what: "DINO's weights",
    option: "--dino DIR",
    parts: &[(
        "facebook/dino-vits16",
        &[&["config.json"], &["preprocessor_config.json"], &["model.safetensors", "pytorch_model.bin"]],
    )],
};
/// PickScore.
pub const PICK_SCORE: MetricWeights = MetricWeights {
    name: "pick-score",
    what: "PickScore's folder",
    option: "--pick-score DIR",
    parts: &[("yuvalkirstain/PickScore_v1", CLIP_FILES)],
};
/// HPS v2.1.
pub const HPS: MetricWeights = MetricWeights {
    name: "hps",
    what: "HPS v2.1's weights and CLIP's vocabulary",
    option: "--hps DIR",
    parts: &[
        ("xswu/HPSv2", &[&["HPS_v2.1_compressed.pt"]]),
        ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", &[&["vocab.json"], &["merges.txt"]]),
    ],
};
/// CSD, style descriptors.
pub const CSD: MetricWeights = MetricWeights {
    name: "csd",
    what: "CSD's weights",
    option: "--csd DIR",
    parts: &[("tomg-group-umd/CSD-ViT-L", &[&["model.safetensors", "pytorch_model.bin"]])],
};

/// All of them.
pub const METRIC_WEIGHTS: [MetricWeights; 7] = [AESTHETIC, CLIP_L, IMAGE_REWARD, DINO, PICK_SCORE, HPS, CSD];

/// The place of weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The folders that have the files of the parts together.
    folders: Vec<PathBuf>,
    /// The weight file that the user named.
    named: Option<PathBuf>,
}

impl Located {
    /// Returns the weight file that the user named, or the first of these that exists.
    pub fn weights(&self, names: &[&str]) -> Option<PathBuf> {
        self.named.clone().or_else(|| self.file(names))
    }

    /// Returns the first of these files that exists, in one of the folders or beside the file that the user named.
    pub fn file(&self, names: &[&str]) -> Option<PathBuf> {
        let paths = names.iter().flat_map(|name| self.folders.iter().map(move |folder| folder.join(name)));
        paths.into_iter().find(|path| path.is_file())
    }

    /// Returns the file that the user named, or the first folder.
    pub fn path(&self) -> &Path {
        self.named.as_deref().unwrap_or(&self.folders[0])
    }
}

impl MetricWeights {
    /// Returns the place of the weights: `named` by an option, or found. None if they are nowhere; with `fetch` they are then
    /// downloaded.
    ///
    /// # Errors
    /// If what is named does not exist, or the download fails.
    pub fn locate(&self, named: Option<&Path>, fetch: bool, context: &Context) -> Result<Option<Located>> {
        if let Some(path) = named {
            ensure!(path.exists(), "{} does not exist: {} names {}", path.display(), self.option, self.what);
            let is_file = path.is_file();
            let folder = if is_file { path.parent().unwrap_or(Path::new(".")) } else { path };
            return Ok(Some(Located { folders: vec![folder.to_owned()], named: is_file.then(|| path.to_owned()) }));
        }
        let own = home().map(|home| home.join("models/weights").join(self.name));
        if let Some(own) = own.filter(|own| own.is_dir()) {
            return Ok(Some(Located { folders: vec![own], named: None }));
        }
        let hub = match Hub::new(context) {
            // Without a place for the cache there is nothing in it.
            Err(error) if !fetch => {
                tracing::debug!("{error:#}");
                return Ok(None);
            }
            hub => hub?,
        };
        let mut folders = vec![];
        for &(id, files) in self.parts {
            let cached = hub.cached(id, Wanted::Files(files))?;
            match cached {
                Some(folder) => folders.push(folder),
                None if fetch => folders.push(hub.folder(id, Wanted::Files(files))?),
                None => return Ok(None),
            }
        }
        Ok(Some(Located { folders, named: None }))
    }

    /// Returns the sentence about missing weights: what is needed, and what to do.
    pub fn missing(&self) -> String {
        let ids: Vec<&str> = self.parts.iter().map(|(id, _)| *id).collect();
        format!(
            "needs {}: put the files of {} into models/weights/{}, name their place with {}, or run `host eval --fetch`",
            self.what,
            ids.join(" and "),
            self.name,
            self.option
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_file_stands_for_itself_and_a_folder_for_its_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("my.pth");
        std::fs::write(&file, "").expect("writable");
        let context = Context::quiet();
        let locate = |path: &Path| AESTHETIC.locate(Some(path), false, &context);
        let found = locate(&file).expect("it exists").expect("named");
        assert_eq!((found.weights(&["aesthetic-model.pth"]), found.path()), (Some(file.clone()), &*file));
        // Another file of the same weights is looked for beside it.
        assert_eq!((found.file(&["vocab.txt"]), found.file(&["my.pth"])), (None, Some(file.clone())));
        let found = locate(folder.path()).expect("it exists").expect("named");
        assert_eq!(found.file(&["aesthetic-model.pth"]), None);
        assert_eq!(found.file(&["aesthetic-model.pth", "my.pth"]), Some(file));
        let message = locate(&folder.path().join("none")).expect_err("nothing there").to_string();
        assert!(
            message.ends_with("does not exist: --aesthetic FILE names the aesthetic predictor's weights"),
            "{message}"
        );
        assert!(AESTHETIC.missing().contains("models/weights/aesthetic"), "{}", AESTHETIC.missing());
    }
}
