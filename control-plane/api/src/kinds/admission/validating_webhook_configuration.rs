//! ValidatingWebhookConfigurations: servers that are asked about writes, and may refuse them.

use std::sync::Arc;

use super::GROUP;
use super::hooks::Hooks;
use crate::kind::Kind;
use crate::kinds::declare::Declaration;

pub(in crate::kinds) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        GROUP,
        "v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        Hooks { mutating: false },
    )
    .categories(&["api-extensions"])
    .build()
}
