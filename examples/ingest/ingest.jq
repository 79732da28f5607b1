# A photograph in base64 becomes a graph: `base64 -w0 photo.jpg | jq -R -f ingest.jq`
{
  jobs: {
    store: {queue: "store", body_base64: ., content_type: "image/jpeg"},
    colours: {queue: "colours", needs: ["store"]},
    facts: {queue: "facts", needs: ["store"]},
    join: {queue: "join", needs: ["store", "colours", "facts"]}
  }
}
