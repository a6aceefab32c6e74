//! All randomness of a simulation from its seed.
//!
//! Hash maps, tokio's `select!`, Raft's timeouts and `rand::rng()` all come to the system's random numbers in
//! the end, once for each thread. A simulation has a thread of its own, and this binary answers for the
//! system there: so a seed means one run.

use std::cell::RefCell;
use std::io::Read;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

thread_local! {
    static SEEDED: RefCell<Option<SmallRng>> = const { RefCell::new(None) };
}

/// Answers for the system on this thread from now on.
pub(super) fn seed_thread(seed: u64) {
    SEEDED.with(|seeded| *seeded.borrow_mut() = Some(SmallRng::seed_from_u64(seed)));
}

/// Takes the place of the C library's function in this binary of tests.
///
/// # Safety
/// As for the original: `buffer` must be writable for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    if length == 0 {
        return 0;
    }
    // SAFETY: the caller promises it.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
    let seeded = SEEDED.try_with(|seeded| match seeded.try_borrow_mut() {
        Ok(mut seeded) => seeded.as_mut().map(|rng| rng.fill_bytes(buffer)).is_some(),
        Err(_) => false,
    });
    if seeded == Ok(true) {
        return isize::try_from(length).unwrap_or(-1);
    }
    match std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(buffer)) {
        Ok(()) => isize::try_from(length).unwrap_or(-1),
        Err(_) => -1,
    }
}
