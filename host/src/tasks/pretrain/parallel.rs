//! Parts of a batch side by side, one thread each.
//!
//! Tensors this small gain little from threads inside an operation, and almost everything from a second copy of the
//! network on a second core. The parts are fixed by the configuration and each part runs on one thread, so the number
//! of threads changes how long it takes and no bit of the result.

use ambiguity_models::params::{NamedTensors, Params};
use anyhow::Result;
use tch::{Device, Kind, Tensor, no_grad};

/// One network for each part of a batch: the same storage, gradients of their own.
pub struct Replicas<N>(Vec<Replica<N>>);

struct Replica<N> {
    network: N,
    tensors: NamedTensors,
}

impl<N: Send> Replicas<N> {
    /// `n` networks over `tensors`, which take gradients; the first one's gradients are theirs. What changes the tensors
    /// in place changes all networks.
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

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The first one.
    pub fn first(&self) -> &N {
        &self.0[0].network
    }

    /// The mean loss of the parts, `loss` computing each one's; leaves the gradient in the tensors. `parts` has one entry
    /// for each replica.
    pub fn backward<J: Send>(
        &mut self,
        threads: usize,
        parts: Vec<J>,
        loss: impl Fn(&N, J) -> Result<Tensor> + Sync,
    ) -> Result<f64> {
        let n_parts = parts.len() as f64;
        let losses = side_by_side(threads, &mut self.0, parts, |replica, part| {
            let loss = loss(&replica.network, part)? / n_parts;
            loss.f_backward()?;
            Ok(loss.double_value(&[]))
        });
        let (first, others) = self.0.split_at_mut(1);
        for replica in others {
            replica.give_gradients(&first[0].tensors);
        }
        losses.into_iter().sum()
    }
}

impl<N> Replica<N> {
    /// Adds this replica's gradients to those of `first` and drops its own.
    fn give_gradients(&mut self, first: &NamedTensors) {
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

/// Parameters out of tensors at hand, shared and not copied: what changes the tensors changes the network.
pub fn over(tensors: &NamedTensors) -> Params {
    let shared = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    Params::from_tensors(shared, "the trained weights", Device::Cpu, Kind::Float)
}

/// Runs `f` on every worker with its job, on at most `threads` threads at once; results in the order of the jobs.
///
/// # Panics
/// If there are more jobs than workers, or if `f` panics.
pub fn side_by_side<W: Send, J: Send, R: Send>(
    threads: usize,
    workers: &mut [W],
    jobs: Vec<J>,
    f: impl Fn(&mut W, J) -> R + Sync,
) -> Vec<R> {
    assert!(jobs.len() <= workers.len(), "{} jobs for {} workers", jobs.len(), workers.len());
    if threads <= 1 || jobs.len() <= 1 {
        return workers.iter_mut().zip(jobs).map(|(worker, job)| f(worker, job)).collect();
    }
    let per_thread = jobs.len().div_ceil(threads);
    let mut jobs = jobs.into_iter();
    let f = &f;
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .chunks_mut(per_thread)
            .map(|workers| (workers, jobs.by_ref().take(per_thread).collect::<Vec<J>>()))
            .filter(|(_, jobs)| !jobs.is_empty())
            .map(|(workers, jobs)| {
                scope.spawn(move || {
                    // A new thread would otherwise use as many threads for each operation as there are cores.
                    tch::set_num_threads(1);
                    workers.iter_mut().zip(jobs).map(|(worker, job)| f(worker, job)).collect::<Vec<R>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a part of the batch panicked")).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_jobs() {
        for threads in [1, 2, 3, 8] {
            let mut workers = [0; 5];
            let results = side_by_side(threads, &mut workers, vec![1, 2, 3, 4], |worker, job| {
                *worker = job;
                job * 10
            });
            assert_eq!(results, [10, 20, 30, 40]);
            assert_eq!(workers, [1, 2, 3, 4, 0]);
        }
    }
}
