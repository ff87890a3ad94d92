//! Parts of a batch side by side, one thread each.
//!
//! Tensors this small gain little from threads inside an operation, and almost everything from a second copy of the
//! network on a second core. The parts are fixed by the configuration and each part runs on one thread, so the number
//! of threads changes how long it takes and no bit of the result.

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
