//! `/metrics/slis`: how the health checks fare, for service level indicators (KEP-3466).

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::health::Check;
use super::metrics;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CheckLabels {
    name: &'static str,
    r#type: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    name: &'static str,
    status: &'static str,
    r#type: &'static str,
}

/// What the checks found, last and in all.
pub struct Slis {
    registry: Mutex<Registry>,
    last: Family<CheckLabels, Gauge>,
    all: Family<OutcomeLabels, Counter>,
}

impl Default for Slis {
    fn default() -> Self {
        let mut registry = Registry::default();
        let (last, all) = (Family::default(), Family::default());
        registry.register(
            "kubernetes_healthcheck",
            "Whether a health check passed when it was last made: 1 or 0",
            last.clone(),
        );
        registry.register(
            "kubernetes_healthchecks",
            "Health checks made, by outcome",
            all.clone(),
        );
        Self {
            registry: Mutex::new(registry),
            last,
            all,
        }
    }
}

impl Slis {
    /// Notes what the checks of an endpoint (`healthz`, `livez`, `readyz`) found.
    pub fn note(&self, endpoint: &'static str, checks: &[Check]) {
        for check in checks {
            let (name, good) = (check.name, check.result.is_ok());
            let labels = CheckLabels {
                name,
                r#type: endpoint,
            };
            self.last.get_or_create(&labels).set(i64::from(good));
            let labels = OutcomeLabels {
                name,
                status: if good { "success" } else { "error" },
                r#type: endpoint,
            };
            self.all.get_or_create(&labels).inc();
        }
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn text(&self) -> String {
        metrics::encode(&self.registry.lock())
    }
}
