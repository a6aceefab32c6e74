//! Images for the agents of a local cluster.

use std::path::Path;

use anyhow::Context;
use balsa_cri::{Containerd, Streams};

use crate::local::topology::{Paths, Topology};

/// Imports an archive into every agent's containerd, all at once.
pub fn import(paths: &Paths, topology: &Topology, file: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(file.exists(), "{} does not exist", file.display());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let imports = topology.agents().map(|node| async move {
            let data = paths.data(&node.name);
            let runtime = Containerd::new(data.join("containerd.sock"), data.join("exec"), "ctr");
            let imported = runtime.import_image(file).await;
            imported
                .with_context(|| format!("cannot import {} into {}", file.display(), node.name))?;
            println!("{}: imported", node.name);
            anyhow::Ok(())
        });
        futures::future::try_join_all(imports).await?;
        Ok(())
    })
}
