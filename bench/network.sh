#!/usr/bin/env bash
# What a slow network costs with and without pruning: two stages on two nodes (network namespaces, as root; see
# tests/cluster/cluster.sh), the link's rate swept so that an unpruned prompt takes 0.1, 0.5, 1 and 2 times as long over the
# wire as in a stage. The cut is right after the last prune point. Prints a table and draws docs/network.svg.
#
# Each rate is compared with a run without a limit right before it, since machines change their mind.
#
#   bench/network.sh [IMAGES]        64 of a made-up model of 8 layers; about fifteen minutes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

images=${1:-64} lvpipe=$PWD/build/release/lvpipe cluster=tests/cluster/cluster.sh
work=$(mktemp -d /var/tmp/lvp-network.XXXXXX) # nodes do not share /tmp
trap '"$cluster" down; rm -rf "$work"' EXIT
cat >"$work/shape.json" <<'END'
{"vision_config": {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 1024,
  "image_size": 336, "patch_size": 14},
 "text_config": {"vocab_size": 1000, "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16,
  "num_key_value_heads": 16, "intermediate_size": 2816, "max_position_embeddings": 1024}}
END
cut=9 # dec[4]: 2 ViT layers run, so dec[0] is block 5; the last prune point is after 4 layers
rows=606 row_bytes=2048

"$cluster" up 2 4 >&2
printf '%s\n' n1 n1 n2 >"$work/hosts" # rank 0 and the first stage, the second stage

measure() { # measure: images/s unpruned and pruned
  SLURM_HOSTFILE=$work/hosts "$cluster" exec n1 env SLURM_HOSTFILE="$work/hosts" HWLOC_COMPONENTS=-gl \
    srun --mpi=pmix --nodes=2 --ntasks=3 --distribution=arbitrary --overcommit \
    "$lvpipe" bench --shape "$work/shape.json" --partition $cut --threads 1 --images "$images" --new-tokens 4 --repeats 1 \
    --keep none,0.5 --json -q | jq -r .images_per_second.median | paste -sd' '
}

printf '%17s %31s %31s\n%17s %20s %10s %20s %10s\n' "" "images/s unpruned" "images/s keep 0.5" "wire / stage time" "without, with limit" share \
  "without, with limit" share
for share in 0.1 0.5 1 2; do
  "$cluster" rate n2 off >&2
  read -r dense pruned < <(measure)
  rate=$(awk -v s=$share -v d="$dense" -v b=$((rows * row_bytes)) 'BEGIN { printf "%d", 8 * b * d / s }') # bits/s
  "$cluster" rate n2 "${rate}bit" >&2
  read -r slow_dense slow_pruned < <(measure)
  [[ -s $work/points ]] || echo "0 $dense $pruned" >"$work/points"
  echo "$share $slow_dense $slow_pruned" >>"$work/points"
  echo "$share $dense $slow_dense $pruned $slow_pruned" |
    awk '{ printf "%17s %12.2f %7.2f %9.0f%% %12.2f %7.2f %9.0f%%\n", $1, $2, $3, 100 * $3 / $2, $4, $5, 100 * $5 / $4 }'
done

awk '
  { x[NR] = $1; y[1, NR] = $2; y[2, NR] = $3; if ($3 > top) top = $3; if ($2 > top) top = $2 }
  function px(v) { return 60 + 400 * v / 2 }
  function py(v) { return 250 - 210 * v / (top * 1.1) }
  END {
    print "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 520 310\" font-family=\"sans-serif\" font-size=\"12\">"
    print "<rect width=\"520\" height=\"310\" fill=\"white\"/><path d=\"M60 30V250H480\" stroke=\"black\" fill=\"none\"/>"
    for (i = 0; i <= 4; i++) printf "<text x=\"%g\" y=\"268\" text-anchor=\"middle\">%g</text>\n", px(i / 2), i / 2
    for (i = 0; i <= 4; i++) printf "<text x=\"54\" y=\"%g\" text-anchor=\"end\">%.1f</text>\n", py(top * i / 4) + 4, top * i / 4
    print "<text x=\"270\" y=\"290\" text-anchor=\"middle\">seconds of an unpruned prompt on the wire / in a stage</text>"
    print "<text x=\"60\" y=\"20\">images/s over two stages</text>"
    split("#b03030 #2060b0", color, " "); split("unpruned|keep 0.5, pruned before it is sent", name, "|")
    for (c = 1; c <= 2; c++) {
      path = ""
      for (i = 1; i <= NR; i++) path = path (i == 1 ? "M" : "L") px(x[i]) " " py(y[c, i])
      printf "<path d=\"%s\" stroke=\"%s\" stroke-width=\"2\" fill=\"none\"/>\n", path, color[c]
      for (i = 1; i <= NR; i++) printf "<circle cx=\"%g\" cy=\"%g\" r=\"3\" fill=\"%s\"/>\n", px(x[i]), py(y[c, i]), color[c]
      printf "<text x=\"475\" y=\"%g\" text-anchor=\"end\" fill=\"%s\">%s</text>\n", py(y[c, NR]) - 10, color[c], name[c]
    }
    print "</svg>"
  }' "$work/points" >docs/network.svg
