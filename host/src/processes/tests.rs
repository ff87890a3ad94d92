//! Three processes as threads of one, each with a connection of its own.

use super::*;

#[test]
fn shares_are_whole_batches_where_there_are_enough() {
    let shares = |n, batch, count| (0..count).map(|rank| share(n, batch, rank, count)).collect::<Vec<_>>();
    assert_eq!(shares(128, 16, 2), [0..64, 64..128]);
    assert_eq!(shares(100, 16, 3), [0..32, 32..64, 64..100]);
    assert_eq!(shares(6, 16, 4), [0..1, 1..3, 3..4, 4..6]);
    assert_eq!(shares(1, 16, 2), [0..0, 0..1]);
    assert_eq!(shares(5, 2, 1), vec![0..5]);
}

/// Runs `work` in each of three processes, here threads with groups of their own.
pub(crate) fn three<R: Send>(timeout: Duration, work: impl Fn(Processes) -> R + Sync) -> Vec<R> {
    // One group at a time: real processes have one each.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Store::serve(0, Duration::from_secs(20)).expect("a free port");
    let port = server.port();
    thread::scope(|scope| {
        let threads = [0, 1, 2].map(|rank| {
            let work = &work;
            scope.spawn(move || {
                let place = Place::new(rank, 3, "127.0.0.1", port);
                work(Processes::connect(place, timeout, None, Children::default()).expect("all three come"))
            })
        });
        threads.map(|thread| thread.join().expect("it does not panic")).into()
    })
}

#[test]
fn values_of_any_length_are_exchanged() {
    let all = three(Duration::from_secs(20), |processes| {
        let rank = processes.rank();
        let texts = processes.gather("x".repeat(rank * 1000)).expect("all are there");
        let rows = processes.gather_to_first(vec![0.1f64; rank]).expect("all are there");
        let made = processes.from_first(|| Ok(Some(("made by".to_owned(), rank)))).expect("all are there");
        let mut sum = Tensor::from_slice(&[rank as f64, 1.0]);
        processes.sum(&mut sum).expect("all are there");
        processes.compare("the plugins", "same").expect("they are equal");
        // Not contiguous, as a part of a tensor is.
        let part = Tensor::full([2, 4], rank as i64, (Kind::Int64, Device::Cpu)).tr().narrow(0, 0, 3);
        let received = processes.exchange_rows(&part, &[1; 3], &[1; 3]).expect("all are there");
        assert_eq!(Vec::<i64>::try_from(&received.flatten(0, -1)).expect("integers"), [0, 0, 1, 1, 2, 2]);
        let other = processes.compare("the plugins", if rank == 2 { "other" } else { "same" });
        let message = other.expect_err("one differs").to_string();
        (
            texts.iter().map(String::len).collect::<Vec<_>>(),
            rows,
            made,
            Vec::<f64>::try_from(&sum).expect("f64"),
            message,
        )
    });
    for (rank, (texts, rows, made, sum, message)) in all.into_iter().enumerate() {
        assert_eq!(texts, [0, 1000, 2000]);
        assert_eq!(rows, (rank == 0).then(|| vec![vec![], vec![0.1], vec![0.1, 0.1]]));
        assert_eq!((made, sum), (Some(("made by".to_owned(), 0)), vec![3.0, 3.0]));
        assert!(message.starts_with("the plugins of process 2 differ"), "{message}");
    }
}

#[test]
fn the_process_that_failed_is_named_with_its_reason() {
    let all = three(Duration::from_secs(20), |processes| {
        if processes.rank() == 2 {
            let error = anyhow::anyhow!("the disk is full");
            return (processes.leave(&error), error.to_string());
        }
        let error = processes.gather(1).expect_err("one is missing");
        (processes.leave(&error), error.to_string())
    });
    let theirs = "process 2 failed: the disk is full".to_owned();
    assert_eq!(all, [(false, theirs.clone()), (true, theirs), (true, "the disk is full".to_owned())]);
}

#[test]
fn a_stuck_process_is_named_and_an_interruption_stops_all() {
    let all = three(Duration::from_millis(500), |processes| {
        if processes.rank() == 1 {
            thread::sleep(Duration::from_secs(8));
            return String::new();
        }
        processes.gather(1).expect_err("one is missing").to_string()
    });
    assert_eq!(all[0], "process 1 did not come within 0 s (--timeout), although it lives: it is slow, or stuck");
    let all = three(Duration::from_secs(20), |processes| {
        if processes.rank() == 1 {
            processes.leave(&Interrupted::default().into());
            return true;
        }
        processes.gather(1).expect_err("one has left").is::<Interrupted>()
    });
    assert_eq!(all, [true; 3]);
}

#[test]
fn nccl_needs_a_gpu_for_each_process() {
    let all = three(Duration::from_secs(20), |processes| {
        processes.use_gpus(Device::Cpu).expect("nobody asks for NCCL");
        // The user asks for it.
        let mut group = Arc::into_inner(processes.0.expect("three processes")).expect("nobody else has it");
        group.backend = Some(Backend::Nccl);
        Processes(Some(Arc::new(group))).use_gpus(Device::Cpu).expect_err("there is no GPU").to_string()
    });
    assert_eq!(all, [(); 3].map(|()| "--backend nccl: 3 processes have 0 GPUs, each needs one of its own".to_owned()));
}

#[test]
fn one_process_exchanges_with_itself() {
    let one = Processes::default();
    assert_eq!((one.rank(), one.count(), one.is_first(), one.share(5, 2)), (0, 1, true, 0..5));
    assert_eq!(one.gather(3).expect("alone"), [3]);
    assert_eq!(one.gather_to_first(3).expect("alone"), Some(vec![3]));
    assert_eq!(one.from_first(|| Ok(4)).expect("alone"), 4);
    assert_eq!(one.device("cuda"), "cuda");
    assert!(!one.leave(&anyhow::anyhow!("it fails")));
}
