#!/usr/bin/env bash
# Renders the examples and the overlays into the folder given (default: where they are kept). Needs helm and kubectl on the PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
into=${1:-.}
mkdir -p "$into/helm/rendered" "$into/manifests/rendered"
for example in kind production; do
  # A password that is made at random would differ each time.
  helm template stagecoach helm/stagecoach -n stagecoach -f helm/examples/$example.yaml --kube-version 1.34.0 \
    --set prefect.server.auth.secret=prefect-login >"$into/helm/rendered/$example.yaml"
done
for overlay in kind gpu-h100 gpu-h200 spot; do
  kubectl kustomize manifests/overlays/$overlay >"$into/manifests/rendered/$overlay.yaml"
done
