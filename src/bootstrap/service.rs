//! The service thread: hears other ranks while nobody here is in a call.
//!
//! A world of CPU ranks on one host needs no thread of ours: pidfds and shared memory tell everything to whoever looks.
//! Between hosts a silent connection must be told from a dead one, so one thread per process sends signs of life,
//! reads what comes, and counts as lost who has been silent for too long. And a kernel that waits for a rank sees no
//! pidfd, so the same thread tells it of deaths. It sleeps in poll, touches nothing but connections and words of
//! shared memory (never the CUDA driver), and ends with the last world that needs it.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use super::control::{self, Endpoint};
use crate::config;

/// How long another host may be silent (`TUTTI_SILENCE_MS` overrides it, for this rank).
const PATIENCE: Duration = Duration::from_secs(15);

/// The shortest patience that may be set, in milliseconds: less than a busy scheduler may take to wake this thread.
const SHORTEST: u64 = 500;

struct Service {
    endpoints: Vec<Weak<Endpoint>>,
    running: bool,
}

static SERVICE: Mutex<Service> = Mutex::new(Service { endpoints: Vec::new(), running: false });

/// Looks after an endpoint for as long as it lives, if it spans hosts or its ranks have devices.
pub fn watch(endpoint: &Arc<Endpoint>, has_devices: bool) {
    if !endpoint.spans_hosts() && !has_devices {
        return;
    }
    let mut service = SERVICE.lock().unwrap_or_else(PoisonError::into_inner);
    service.endpoints.push(Arc::downgrade(endpoint));
    if service.running {
        return;
    }
    let spawned = std::thread::Builder::new().name("tutti-service".into()).stack_size(128 * 1024).spawn(serve);
    match spawned {
        Ok(_) => service.running = true,
        Err(error) => log::warn!(
            target: "tutti::bootstrap",
            "no service thread ({error}): other hosts are heard only while a call waits"
        ),
    }
}

fn serve() {
    let patience = config::variable("TUTTI_SILENCE_MS")
        .and_then(|text| text.parse().ok())
        .map_or(PATIENCE, |ms: u64| Duration::from_millis(ms.max(SHORTEST)));
    // Several signs of life fit into the patience, so that one late wake-up does no harm.
    let interval = patience / 5;
    loop {
        let endpoints: Vec<Arc<Endpoint>> = {
            let mut service = SERVICE.lock().unwrap_or_else(PoisonError::into_inner);
            service.endpoints.retain(|endpoint| endpoint.strong_count() > 0);
            if service.endpoints.is_empty() {
                service.running = false;
                return;
            }
            service.endpoints.iter().filter_map(Weak::upgrade).collect()
        };
        for endpoint in &endpoints {
            endpoint.progress();
            endpoint.keep_alive(interval, patience);
            endpoint.tell_losses();
        }
        let borrowed: Vec<&Endpoint> = endpoints.iter().map(|endpoint| &**endpoint).collect();
        control::wait_for_any(&borrowed, interval / 2);
    }
}
