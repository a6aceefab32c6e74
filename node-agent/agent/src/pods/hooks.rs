//! postStart and preStop hooks.

use std::time::Duration;

use balsa_cri::Runtime;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::http;

/// Runs a hook in or at a container; the error is for people.
pub(crate) async fn run(
    runtime: &dyn Runtime,
    handler: &LifecycleHandler,
    container: &Container,
    container_id: &str,
    pod_ip: &str,
    limit: Duration,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let output = runtime.exec_sync(container_id, &command, limit).await;
        let output =
            output.map_err(|error| format!("Exec lifecycle hook ({command:?}) failed: {error}"))?;
        if output.exit_code != 0 {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            return Err(format!(
                "Exec lifecycle hook ({command:?}) for Container {:?} failed - error: command '{}' exited with {}: {text}",
                container.name,
                command.join(" "),
                output.exit_code
            ));
        }
        return Ok(());
    }
    if let Some(action) = &handler.http_get {
        let answer = http::get(action, container, pod_ip, limit).await?;
        return if (200..400).contains(&answer.code) {
            Ok(())
        } else {
            Err(format!(
                "Http lifecycle hook failed: HTTP status {}",
                answer.code
            ))
        };
    }
    if let Some(sleep) = &handler.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds).min(limit)).await;
    }
    Ok(())
}
