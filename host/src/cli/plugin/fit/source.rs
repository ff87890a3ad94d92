//! The data to cluster: images, texts or embeddings as rows of a matrix, and the names of their clusters.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambiguity_models::safetensors::read_safetensors;
use anyhow::{Context as _, Result, bail, ensure};
use ndarray::Array2;
use tch::Kind;

use crate::context::Context;
use crate::data::images::{ImageError, ImageLoader, find_images, warn_of_unreadable};
use crate::data::prompts::distinct_lines;
use crate::encoders::{Embedded, Encoders, embed_files, stacked};
use crate::plugin::fit::{Clustering, name_clusters};
use crate::plugin::limits::is_name;
use crate::plugin::user_cache;

/// The message of an interrupt.
pub(super) const KEPT: &str = "nothing was written";

/// Number of texts in one embedding call.
const BATCH: usize = 128;

/// The items of a matrix's rows.
#[derive(Clone, Debug)]
pub(super) enum Items {
    /// Image files below a folder, and what read them.
    Images { root: PathBuf, files: Vec<PathBuf>, loader: Arc<ImageLoader> },
    /// Distinct texts.
    Texts(Vec<String>),
    /// Embeddings of unknown items.
    Embeddings,
}

/// A cluster with its name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cluster {
    /// The style's name.
    pub name: String,
    /// The cluster's items, the closest to the center first.
    pub members: Vec<usize>,
    /// For images in folders: the folder of most of them, and its share.
    pub folder: Option<(String, f64)>,
}

impl Items {
    /// Returns the plural noun of the items.
    pub(super) fn unit(&self) -> &'static str {
        match self {
            Self::Images { .. } => "images",
            Self::Texts(_) => "texts",
            Self::Embeddings => "embeddings",
        }
    }

    /// Names the clusters, in an order that does not depend on the initialization; returns how they are named too.
    pub(super) fn name(&self, found: Clustering, points: &Array2<f32>) -> (Clustering, Vec<Cluster>, &'static str) {
        let members = found.nearest_first(points);
        let mut order: Vec<usize> = (0..members.len()).collect();
        // The first item of a cluster does not depend on the clusters' numbers.
        let first = |i: usize| members[i].iter().min();
        order.sort_by(|&a, &b| members[b].len().cmp(&members[a].len()).then(first(a).cmp(&first(b))));
        let number = |order: &[usize], name: &dyn Fn(usize, usize) -> String| -> Vec<Cluster> {
            let cluster = |(new, &old): (usize, &usize)| Cluster {
                name: name(new, old),
                members: members[old].clone(),
                folder: None,
            };
            order.iter().enumerate().map(cluster).collect()
        };
        let (clusters, method) = match self {
            Self::Images { root, files, .. } => {
                let folders: Vec<String> = files.iter().map(|file| style_folder(root, file)).collect();
                let names = name_clusters(&found.labels, &folders, members.len());
                if names.from_folders {
                    order.sort_by(|&a, &b| names.names[a].cmp(&names.names[b]));
                }
                let mut clusters = number(&order, &|new, old| match names.from_folders {
                    true => names.names[old].clone(),
                    false => numbered(new),
                });
                for (cluster, &old) in clusters.iter_mut().zip(&order) {
                    cluster.folder = Some(names.majority[old].clone()).filter(|(folder, _)| !folder.is_empty());
                }
                let method = match (names.from_folders, folders.iter().all(String::is_empty)) {
                    (true, _) => "named by their folders, one to one",
                    (false, true) => "named by number",
                    (false, false) => "named by number, since they are not one to one with folders",
                };
                (clusters, method)
            }
            Self::Texts(texts) => {
                let name = |new: usize, old: usize| match members[old].first() {
                    Some(&nearest) if is_name(&texts[nearest]) => texts[nearest].clone(),
                    _ => numbered(new),
                };
                (number(&order, &name), "each named by the text closest to its center")
            }
            Self::Embeddings => (number(&order, &|new, _| numbered(new)), "named by number"),
        };
        (found.reordered(&order), clusters, method)
    }
}

fn numbered(i: usize) -> String {
    format!("cluster-{:02}", i + 1)
}

/// Returns the folder below `root` that contains a file; empty if the file is in `root` itself.
fn style_folder(root: &Path, file: &Path) -> String {
    let mut below = file.strip_prefix(root).unwrap_or(file).components();
    let first = below.next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    match below.next() {
        Some(_) => first.unwrap_or_default(),
        None => String::new(),
    }
}

/// Embeds the images below `root` that can be read; the others are named in warnings.
pub(super) fn images(
    root: &Path,
    encoder: &str,
    encoders: &mut Encoders,
    context: &Context,
) -> Result<(Items, Array2<f32>)> {
    let found = find_images(root)?;
    let loader = Arc::new(ImageLoader::default());
    let mut errors = vec![];
    let mut skip = |error: ImageError| {
        errors.push(error.to_string());
        Ok(())
    };
    let Embedded { files, rows } =
        embed_files(&found, encoder, encoders, &loader, user_cache().as_deref(), &mut skip, context)?;
    warn_of_unreadable(&errors, found.len());
    ensure!(!files.is_empty(), "none of the {} images below {} can be read", found.len(), root.display());
    Ok((Items::Images { root: root.to_owned(), files, loader }, rows))
}

/// Embeds a file's lines; empty and repeated ones and comments are left out.
pub(super) fn texts(
    file: &Path,
    encoder: &str,
    encoders: &mut Encoders,
    context: &Context,
) -> Result<(Items, Array2<f32>)> {
    let texts = distinct_lines(file)?;
    ensure!(!texts.is_empty(), "{} has no texts: write one per line", file.display());
    encoders.get(encoder)?;
    let bar = context.progress.bar("embedding", texts.len() as u64, "texts");
    let mut rows = vec![];
    for chunk in texts.chunks(BATCH) {
        context.interrupt.check(KEPT)?;
        rows.push(encoders.embed_texts(encoder, chunk)?);
        bar.inc(chunk.len() as u64);
    }
    bar.finish();
    let rows = stacked(&rows);
    Ok((Items::Texts(texts), rows))
}

/// Reads a matrix from a safetensors file, as f32 whatever its type there.
pub(super) fn matrix(file: &Path, key: &str) -> Result<Array2<f32>> {
    let mut tensors = read_safetensors(file)?;
    let Some(tensor) = tensors.remove(key) else {
        let keys: Vec<String> = tensors.keys().map(|name| format!("`{name}`")).collect();
        let keys = if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
        bail!("{} has no tensor `{key}`, it has {keys}", file.display());
    };
    let shape = tensor.size();
    let [rows, columns] = shape[..] else {
        bail!("{}: `{key}` has shape {shape:?}, it must be a matrix with one row per item", file.display());
    };
    let flat = tensor.f_to_kind(Kind::Float).and_then(|tensor| tensor.f_contiguous()?.f_view([-1]));
    let data = Vec::<f32>::try_from(&flat.with_context(|| format!("{}: `{key}`", file.display()))?)?;
    Ok(Array2::from_shape_vec((rows as usize, columns as usize), data)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Clustering {
        Clustering { centers: ndarray::arr2(&[[0.0], [1.0]]), labels: vec![0, 1, 1], inertia: 0.0, iterations: 1 }
    }

    /// The third point is closer to its center than the second.
    fn points() -> Array2<f32> {
        ndarray::arr2(&[[0.0], [1.3], [0.9]])
    }

    fn images(names: [&str; 3]) -> Items {
        Items::Images {
            root: "art".into(),
            files: names.map(|name| Path::new("art").join(name)).to_vec(),
            loader: Arc::default(),
        }
    }

    #[test]
    fn the_style_is_the_first_folder_below_the_root() {
        let style = |file: &str| style_folder(Path::new("art"), Path::new(file));
        assert_eq!([style("art/cubism/a/1.png"), style("art/1.png")], ["cubism", ""]);
    }

    #[test]
    fn clusters_are_sorted_by_name_or_by_size() {
        let (by_name, clusters, _) = images(["b/1.png", "a/1.png", "a/2.png"]).name(found(), &points());
        assert_eq!((clusters[0].name.as_str(), by_name.labels), ("a", vec![1, 0, 0]));
        assert_eq!((&clusters[0].members, &clusters[0].folder), (&vec![2, 1], &Some(("a".to_owned(), 1.0))));
        let (by_size, clusters, _) = images(["1.png", "2.png", "3.png"]).name(found(), &points());
        assert_eq!(clusters.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["cluster-01", "cluster-02"]);
        assert_eq!((by_size.sizes(), by_size.centers[[0, 0]], &clusters[0].folder), (vec![2, 1], 1.0, &None));
    }

    #[test]
    fn clusters_of_texts_are_named_by_their_closest_text() {
        let texts = Items::Texts(["fog", "sun", "light"].map(String::from).to_vec());
        let (_, clusters, _) = texts.name(found(), &points());
        assert_eq!(clusters.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["light", "fog"]);
    }
}
