//! Training batches of which several processes compute a share each.

use std::ops::Range;

use tch::{Kind, Tensor, no_grad};
use torch_ext::Generator as Randomness;
use torch_ext::distributed::ProcessGroup;

use crate::error::Result;

/// This process's share of a training batch: all of it, unless several processes share the batches. Random numbers are drawn for
/// the whole batch, so that a row has the same ones in any number of processes, and BatchNorm's statistics are those of the whole
/// batch.
#[derive(Clone, Debug)]
pub struct Share {
    rows: Range<i64>,
    of: i64,
    processes: Option<ProcessGroup>,
}

impl Share {
    /// Returns a whole batch of `n` rows.
    pub fn whole(n: i64) -> Self {
        Self { rows: 0..n, of: n, processes: None }
    }

    /// Returns some rows, at least one, of a batch of `of` rows; other processes of the group compute the others.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn of_processes(rows: Range<i64>, of: i64, processes: ProcessGroup) -> Self {
        assert!(rows.start < rows.end && rows.end <= of, "rows {rows:?} of {of}");
        Self { rows, of, processes: Some(processes) }
    }

    /// This share's fraction of the batch: the factor of a mean over the own rows in the mean over the batch.
    pub fn weight(&self) -> f64 {
        (self.rows.end - self.rows.start) as f64 / self.of as f64
    }

    /// Weights a mean over the own rows by [`Share::weight`]; summed over the processes it is the mean over the batch.
    pub fn weighted(&self, mean: &Tensor) -> Tensor {
        if self.processes.is_some() { mean * self.weight() } else { mean.shallow_clone() }
    }

    /// Replaces the gradients of parameters by their sums over the processes.
    ///
    /// # Errors
    /// If another process is gone.
    pub fn sum_gradients<'a>(&self, parameters: impl Iterator<Item = &'a Tensor>) -> Result<()> {
        let Some(mut processes) = self.processes.clone() else { return Ok(()) };
        let gradients: Vec<Tensor> = parameters.map(Tensor::grad).filter(Tensor::defined).collect();
        let flat: Vec<Tensor> = gradients.iter().map(|gradient| gradient.flatten(0, -1)).collect();
        // As one operation: each waits for all processes.
        let mut sum = Tensor::f_cat(&flat, 0)?;
        processes.sum(&mut sum)?;
        let mut start = 0;
        for mut gradient in gradients {
            let n = gradient.numel() as i64;
            gradient.f_copy_(&sum.narrow(0, start, n).view_as(&gradient))?;
            start += n;
        }
        Ok(())
    }

    /// Returns the own rows of a tensor of the whole batch.
    pub fn rows(&self, batch: &Tensor) -> Tensor {
        batch.narrow(0, self.rows.start, self.rows.end - self.rows.start)
    }

    /// Returns a tensor of the whole batch, without gradient, of which each process has its own rows.
    ///
    /// # Errors
    /// If another process is gone.
    pub fn all_rows(&self, own: &Tensor) -> Result<Tensor> {
        let Some(processes) = &self.processes else { return Ok(own.detach()) };
        let mut shape = own.size();
        shape[0] = self.of;
        let all = Tensor::zeros(shape, (own.kind(), own.device()));
        self.rows(&all).copy_(&own.detach());
        Ok(no_grad(|| processes.differentiable_sum(&all))?)
    }

    /// Returns standard normal numbers for the own rows, [rows, ...], on the CPU.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn normal(&self, randomness: &mut Randomness, row: &[i64]) -> Result<Tensor> {
        Ok(self.rows(&randomness.normal(&self.shape(row))?))
    }

    /// Returns numbers in [0, 1) for the own rows, [rows, ...], on the CPU.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn uniform(&self, randomness: &mut Randomness, row: &[i64]) -> Result<Tensor> {
        Ok(self.rows(&randomness.uniform(&self.shape(row))?))
    }

    fn shape(&self, row: &[i64]) -> Vec<i64> {
        [&[self.of], row].concat()
    }

    /// Returns the mean and the biased variance, f64 \[channels\], of the features [rows, channels, h, w] of the whole batch, with
    /// their gradient, and the number of values of a channel; none where this process has the whole batch.
    pub(super) fn moments(&self, x: &Tensor) -> Option<Result<(Tensor, Tensor, f64)>> {
        let processes = self.processes.as_ref()?;
        Some(moments(x, self.weight(), processes))
    }
}

fn moments(x: &Tensor, weight: f64, processes: &ProcessGroup) -> Result<(Tensor, Tensor, f64)> {
    let dims = [0i64, 2, 3].as_slice();
    let channels = x.size()[1];
    let own = (x.numel() as i64 / channels) as f64;
    // Moments of parts combine without cancellation where each is around the part's own mean (Chan et al., 1979).
    let mean = x.mean_dim(dims, true, Kind::Float);
    let squares = (x - &mean).square().sum_dim_intlist(dims, false, Kind::Float).to_kind(Kind::Double);
    let mean = mean.flatten(0, -1).to_kind(Kind::Double);
    let sums = processes.differentiable_sum(&Tensor::cat(&[&mean * own, squares + mean.square() * own], 0))?;
    let all = own / weight;
    let mean = sums.narrow(0, 0, channels) / all;
    let variance = sums.narrow(0, channels, channels) / all - mean.square();
    Ok((mean, variance, all))
}
