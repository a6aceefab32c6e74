//! The memory allocator: jemalloc, for Rust and for RocksDB's C++.
//!
//! A server makes and drops many objects of many sizes from many threads. glibc keeps what was freed in one arena for
//! each thread and gives little of it back: after a burst of writes a leader stayed at twice the memory that it used.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's settings, by the name that it looks for: few arenas, since a server has few threads that allocate, and
/// freed pages go back to the kernel after a second, by a thread of jemalloc's own when nothing else allocates.
///
/// An administrator's `MALLOC_CONF` wins over it.
#[unsafe(export_name = "malloc_conf")]
static SETTINGS: Text =
    Text(c"narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0,background_thread:true,max_background_threads:1".as_ptr());

/// A C string's address, as jemalloc declares the setting.
#[repr(transparent)]
struct Text(*const std::ffi::c_char);

// SAFETY: it points to constant bytes that nobody writes.
unsafe impl Sync for Text {}
