//! Running things side by side. A panic in a thread goes on in the one that waits for it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::{self, ScopedJoinHandle};

use anyhow::Result;

/// Waits for a thread and returns its value.
pub fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Items that wait for docker, a network or a disk at the same time.
const AT_ONCE: usize = 16;

/// Runs `work` on every item, up to 16 at the same time, and returns the values in order.
pub fn each<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    map(AT_ONCE, items, work)
}

/// Runs `work` on every item, in so many threads, and returns the values in order.
pub fn map<T: Sync, R: Send>(threads: usize, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let one = || {
        let at = next.fetch_add(1, Relaxed);
        Some((at, work(items.get(at)?)))
    };
    let done = in_threads(threads.min(items.len()), || std::iter::from_fn(one).collect::<Vec<_>>());
    let mut done: Vec<(usize, R)> = done.into_iter().flatten().collect();
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, value)| value).collect()
}

/// Runs `worker` in so many threads, of which this is one; in fewer if the system has no more.
fn in_threads<R: Send>(threads: usize, worker: impl Fn() -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let others = (1..threads).map_while(|_| thread::Builder::new().spawn_scoped(scope, &worker).ok());
        let others: Vec<_> = others.collect();
        let own = worker();
        others.into_iter().map(join).chain([own]).collect()
    })
}

/// Runs `work` on all items, in so many threads, until one fails.
///
/// # Errors
/// With that of one that failed.
pub fn try_each<T: Sync>(threads: usize, items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let worker = || {
        while let Some(item) = items.get(next.fetch_add(1, Relaxed)) {
            if let Err(error) = work(item) {
                // Nobody begins with another one.
                next.store(items.len(), Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    in_threads(threads.min(items.len()), worker).into_iter().fold(Ok(()), Result::and)
}

/// Returns how many threads may compress or decompress side by side: each holds some MiB.
pub fn workers() -> usize {
    thread::available_parallelism().map_or(2, |cores| cores.get()).min(8)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::ensure;

    use super::*;

    #[test]
    fn of_many_items_some_run_at_the_same_time_and_their_values_are_in_order() {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let numbers: Vec<u64> = (0..100).collect();
        let values = each(&numbers, |number| {
            most.fetch_max(running.fetch_add(1, Relaxed) + 1, Relaxed);
            thread::sleep(Duration::from_millis(1 + number % 3));
            running.fetch_sub(1, Relaxed);
            *number
        });
        assert_eq!(values, numbers);
        assert!((2..=AT_ONCE).contains(&most.into_inner()));
        assert_eq!(each(&[(); 0], |()| 1), [0; 0]);
    }

    #[test]
    fn nothing_is_begun_after_one_has_failed() {
        let done = AtomicUsize::new(0);
        let until = |limit: usize| {
            try_each(1, &[1, 2, 3, 4], |number| {
                done.fetch_add(*number, Relaxed);
                ensure!(*number < limit, "{number} fails");
                Ok(())
            })
        };
        until(5).unwrap();
        assert_eq!(done.load(Relaxed), 10);
        assert_eq!(until(2).unwrap_err().to_string(), "2 fails");
        assert_eq!(done.load(Relaxed), 13);
    }
}
