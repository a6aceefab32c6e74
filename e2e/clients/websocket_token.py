"""A command in a pod over a WebSocket, as a browser opens one: it cannot set headers, so the token is a protocol.

usage: websocket_token.py NAMESPACE POD TOKEN TOKEN-WITHOUT-RIGHTS   (KUBECONFIG names the cluster)
"""

import base64
import ssl
import sys

import websocket
from kubernetes import client, config

CHANNELS = "v5.channel.k8s.io"
PREFIX = "base64url.bearer.authorization.k8s.io."


def protocol(token):
    return PREFIX + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


def said(url, protocols):
    """What the command printed; or the status code of a refusal."""
    try:
        connection = websocket.create_connection(
            url, subprotocols=protocols, timeout=20, sslopt={"cert_reqs": ssl.CERT_NONE, "check_hostname": False})
    except websocket.WebSocketBadStatusException as refusal:
        return refusal.status_code
    assert connection.subprotocol == CHANNELS, connection.subprotocol
    printed = b""
    while True:
        frame = connection.recv()
        if not frame:
            return printed.decode().strip()
        if frame[0] == 1:
            printed += frame[1:]
        if frame[0] == 3:
            assert b"Success" in frame, frame
            connection.close()
            return printed.decode().strip()


def main():
    namespace, pod, token, strangers = sys.argv[1:]
    config.load_kube_config()
    host = client.Configuration.get_default_copy().host.replace("https", "wss", 1)
    url = f"{host}/api/v1/namespaces/{namespace}/pods/{pod}/exec?command=echo&command=ahoy&stdout=1"
    answers = (said(url, [protocol(token), CHANNELS]), said(url, [CHANNELS]), said(url, [protocol(strangers), CHANNELS]))
    print("%s, %s without a token, %s without rights" % answers)


main()
