#!/usr/bin/env python3
"""Packs a folder as an OCI image archive that containerd imports.

usage: pack.py ROOT OUT.tar NAME [--below ROOT]... [--entrypoint JSON] [--cmd JSON] [--env K=V]...

Each folder is a layer, the lowest first.

The result depends only on the folder's content, so an unchanged image keeps its digest.
"""
import argparse
import hashlib
import io
import json
import os
import platform
import tarfile


def layer(root):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        paths = []
        for folder, folders, files in os.walk(root):
            folders.sort()
            paths += [os.path.join(folder, name) for name in folders + files]
        for path in sorted(paths):
            info = tar.gettarinfo(path, os.path.relpath(path, root))
            info.mtime = 0
            info.uname = info.gname = ""
            info.uid, info.gid = 0, 0
            if info.isreg():
                with open(path, "rb") as file:
                    tar.addfile(info, file)
            else:
                tar.addfile(info)
    return buffer.getvalue()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("out")
    parser.add_argument("name")
    parser.add_argument("--below", action="append", default=[])
    parser.add_argument("--entrypoint", type=json.loads, default=None)
    parser.add_argument("--cmd", type=json.loads, default=None)
    parser.add_argument("--env", action="append", default=[])
    args = parser.parse_args()

    blobs = {}

    def blob(data, media_type):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    layers = [layer(root) for root in [*args.below, args.root]]
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    settings = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] + args.env}
    if args.entrypoint:
        settings["Entrypoint"] = args.entrypoint
    if args.cmd:
        settings["Cmd"] = args.cmd
    config = {
        "architecture": machine,
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(content).hexdigest() for content in layers]},
    }
    prefix = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{prefix}.manifest.v1+json",
        "config": blob(json.dumps(config, sort_keys=True).encode(), f"{prefix}.config.v1+json"),
        "layers": [blob(content, f"{prefix}.layer.v1.tar") for content in layers],
    }
    entry = blob(json.dumps(manifest, sort_keys=True).encode(), f"{prefix}.manifest.v1+json")
    entry["annotations"] = {
        "io.containerd.image.name": args.name,
        "org.opencontainers.image.ref.name": args.name.rsplit(":", 1)[-1],
    }
    index = {"schemaVersion": 2, "mediaType": f"{prefix}.index.v1+json", "manifests": [entry]}

    with tarfile.open(args.out + ".new", "w") as tar:
        def add(name, data):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        add("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        add("index.json", json.dumps(index).encode())
        for digest, data in sorted(blobs.items()):
            add(f"blobs/sha256/{digest}", data)
    os.replace(args.out + ".new", args.out)


main()
