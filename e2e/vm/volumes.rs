//! Volumes that old runtimes don't have.

use super::*;

#[test]
fn mounts_are_read_only_all_the_way_down() -> anyhow::Result<()> {
    let scene = Scene::new("vm-readonly")?;
    if !scene.vm.modern()? {
        return Ok(());
    }
    let vm = &scene.vm;
    vm.sh("mkdir -p /var/deep/below && { mountpoint -q /var/deep/below || mount -t tmpfs deep /var/deep/below; }")?;
    let mount = |name: &str, mode: &str| json!({"name": "deep", "mountPath": format!("/{name}"), "readOnly": true, "recursiveReadOnly": mode});
    let pod = scene.running("reader", json!({
        "containers": [{"name": "c", "volumeMounts": [mount("all", "Enabled"), mount("maybe", "IfPossible"), mount("top", "Disabled")]}],
        "volumes": [{"name": "deep", "hostPath": {"path": "/var/deep"}}]}))?;
    let writable =
        "for at in all maybe top; do touch /$at/below/file 2>/dev/null && echo $at; done; true";
    assert_eq!(scene.exec("reader", writable)?, "top");
    let mounts = pod["status"]["containerStatuses"][0]["volumeMounts"]
        .as_array()
        .context("no mounts")?;
    let told = |path: &str| {
        let found = mounts.iter().find(|mount| mount["mountPath"] == path);
        found.map(|mount| mount["recursiveReadOnly"].clone())
    };
    assert_eq!(told("/all"), Some(json!("Enabled")));
    assert_eq!(told("/maybe"), Some(json!("Enabled")));
    assert_eq!(told("/top"), Some(json!("Disabled")));
    Ok(())
}

#[test]
fn an_image_is_a_volume() -> anyhow::Result<()> {
    let scene = Scene::new("vm-images")?;
    // Of several layers, and of one.
    let image = |name: &str| json!({"name": name, "image": {"reference": name, "pullPolicy": "IfNotPresent"}});
    let pod = |users: bool| {
        json!({"hostUsers": users,
            "containers": [{"name": "c", "volumeMounts": [
                {"name": "nginx", "mountPath": "/image"}, {"name": "testserver", "mountPath": "/small"}]}],
            "volumes": [image("nginx"), image("testserver")]})
    };
    scene.running("viewer", pod(true))?;
    assert_eq!(
        scene.exec("viewer", "ls /image/etc/nginx/nginx.conf")?,
        "/image/etc/nginx/nginx.conf"
    );
    let refused = scene.exec("viewer", "touch /image/x 2>&1 || echo refused")?;
    assert!(refused.ends_with("refused"), "{refused}");
    if scene.vm.modern()? {
        scene.running("mapped", pod(false))?;
        let owners = "stat -c %u /image/etc/nginx/nginx.conf /image/etc/passwd /small/testserver";
        assert_eq!(scene.exec("mapped", owners)?, "0\n0\n0");
        assert_eq!(
            scene.exec("mapped", "touch /image/x 2>&1 || echo refused")?,
            refused
        );
        scene.kubectl().ok(&["delete", "pod", "mapped", "viewer"])?;
        let mounts = "grep -c image-volumes /proc/self/mountinfo || true";
        // The node cleans up beside the removal from the API.
        eventually("an end of the images' mounts", PATIENCE, || {
            Ok(scene.vm.line(mounts)? == "0")
        })?;
    }
    Ok(())
}
