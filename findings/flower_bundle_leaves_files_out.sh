#!/usr/bin/env bash
# Flower 1.41.0: 'flwr build' puts only Python, TOML, Markdown, YAML and JSON files into an app's bundle. Where 'fab-include'
# in pyproject.toml names the folder of a package ("labelled/**"), a text file in it stays behind and nothing says so; where
# it names the file besides ("labelled/labels.txt"), the build ends with "did not match any files", though the file is there.
# So an app that reads a file of its package (labels, a template, constants) works from its folder and fails on a SuperLink.
# Seen on Python 3.11, Linux x86_64. Takes a minute. Fails if the bundle holds the file, or if either build says another thing.
set -euo pipefail
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export FLWR_HOME="$folder/home"
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check flwr==1.41.0

mkdir -p "$folder/app/labelled"
cd "$folder/app"
cat >pyproject.toml <<'END'
[project]
name = "labelled"
version = "1.0.0"
description = "An app with a file of its own"
license = "Apache-2.0"
dependencies = ["flwr>=1.41"]

[tool.flwr.app]
publisher = "somebody"
fab-include = ["labelled/**"]

[tool.flwr.app.components]
serverapp = "labelled.server_app:app"
clientapp = "labelled.client_app:app"

[tool.flwr.app.config]
END
touch labelled/__init__.py
echo 'from flwr.serverapp import ServerApp
app = ServerApp()' >labelled/server_app.py
echo 'from flwr.clientapp import ClientApp
app = ClientApp()' >labelled/client_app.py
echo 'cat' >labelled/labels.txt

"$folder/env/bin/flwr" build >"$folder/said" 2>&1
cat "$folder/said"
python3 -m zipfile -l ./*.fab | tee "$folder/held"
grep -q 'labelled/client_app.py' "$folder/held"
if grep -q 'labels.txt' "$folder/held" "$folder/said"; then
    echo "the file is in the bundle, or is named"
    exit 1
fi
echo "labels.txt stayed behind, and nothing said so"

sed -i 's#"labelled/\*\*"#"labelled/**", "labelled/labels.txt"#' pyproject.toml
if "$folder/env/bin/flwr" build >"$folder/said" 2>&1; then
    echo "the file can be named"
    exit 1
fi
cat "$folder/said"
tr -d '\n│' <"$folder/said" | tr -s ' ' | grep -q 'did not match any files'
