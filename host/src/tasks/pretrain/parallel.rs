//! Data parallelism over the parts of a batch, one thread each.
//!
//! Tensors this small gain little from threads inside an operation, but a replica of the network on a second core
//! nearly doubles the speed. The parts are fixed by the configuration and each part runs on one thread, so the number
//! of threads changes the duration but no bit of the result.

use std::panic::resume_unwind;

use ambiguity_models::params::{NamedTensors, Params};
use anyhow::Result;
use tch::{Device, Kind, Tensor, no_grad};

/// One replica of a network for each part of a batch, with shared weights and separate gradients.
pub struct Replicas<N>(Vec<Replica<N>>);

struct Replica<N> {
    network: N,
    tensors: NamedTensors,
}

impl<N: Send> Replicas<N> {
    /// Returns `n` replicas over `tensors`, which require gradients; the first replica's gradients are those of
    /// `tensors`. An in-place change of `tensors` changes all replicas.
    pub fn new(n: usize, tensors: &NamedTensors, build: impl Fn(&Params) -> Result<N>) -> Result<Self> {
        let replica = |i: usize| {
            let leaf = |(name, tensor): (&String, &Tensor)| {
                let own = if i == 0 { tensor.shallow_clone() } else { tensor.detach() };
                (name.clone(), own.set_requires_grad(true))
            };
            let tensors: NamedTensors = tensors.iter().map(leaf).collect();
            Ok(Replica { network: build(&over(&tensors))?, tensors })
        };
        Ok(Self((0..n).map(replica).collect::<Result<_>>()?))
    }

    /// Returns the number of replicas.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the first replica.
    pub fn first(&self) -> &N {
        &self.0[0].network
    }

    /// Returns the mean of the parts' losses, computed by `loss`, and accumulates its gradient in the tensors. `parts`
    /// has one entry for each replica.
    pub fn backward<P: Send>(
        &mut self,
        threads: usize,
        parts: Vec<P>,
        loss: impl Fn(&N, P) -> Result<Tensor> + Sync,
    ) -> Result<f64> {
        let n_parts = parts.len() as f64;
        let losses = parallel_map(threads, &mut self.0, parts, |replica, part| {
            let loss = loss(&replica.network, part)? / n_parts;
            loss.f_backward()?;
            Ok(loss.double_value(&[]))
        });
        let (first, others) = self.0.split_at_mut(1);
        for replica in others {
            replica.move_gradients(&first[0].tensors);
        }
        losses.into_iter().sum()
    }
}

impl<N> Replica<N> {
    /// Adds this replica's gradients to those of `first` and clears its own.
    fn move_gradients(&mut self, first: &NamedTensors) {
        no_grad(|| {
            for (name, tensor) in &mut self.tensors {
                let own = tensor.grad();
                if own.defined() {
                    let _ = first[name].grad().g_add_(&own);
                    tensor.zero_grad();
                }
            }
        });
    }
}

/// Returns parameters that share the given tensors without copying: a change of the tensors changes the network.
pub fn over(tensors: &NamedTensors) -> Params {
    let shared = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    Params::from_tensors(shared, "the trained weights", Device::Cpu, Kind::Float)
}

/// Runs `f` on every worker with its input, on at most `threads` threads at once; returns the results in the order of
/// the inputs.
///
/// # Panics
/// If there are more inputs than workers, or if `f` panics.
pub fn parallel_map<W: Send, I: Send, R: Send>(
    threads: usize,
    workers: &mut [W],
    inputs: Vec<I>,
    f: impl Fn(&mut W, I) -> R + Sync,
) -> Vec<R> {
    assert!(inputs.len() <= workers.len(), "{} inputs for {} workers", inputs.len(), workers.len());
    if threads <= 1 || inputs.len() <= 1 {
        return workers.iter_mut().zip(inputs).map(|(worker, input)| f(worker, input)).collect();
    }
    let per_thread = inputs.len().div_ceil(threads);
    let mut inputs = inputs.into_iter();
    let f = &f;
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .chunks_mut(per_thread)
            .map(|workers| (workers, inputs.by_ref().take(per_thread).collect::<Vec<I>>()))
            .filter(|(_, inputs)| !inputs.is_empty())
            .map(|(workers, inputs)| {
                scope.spawn(move || {
                    // A new thread would otherwise use as many threads for each operation as there are cores.
                    tch::set_num_threads(1);
                    workers.iter_mut().zip(inputs).map(|(worker, input)| f(worker, input)).collect::<Vec<R>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_inputs() {
        for threads in [1, 2, 3, 8] {
            let mut workers = [0; 5];
            let results = parallel_map(threads, &mut workers, vec![1, 2, 3, 4], |worker, input| {
                *worker = input;
                input * 10
            });
            assert_eq!(results, [10, 20, 30, 40]);
            assert_eq!(workers, [1, 2, 3, 4, 0]);
        }
    }
}
