{
  # For node-gyp and prebuildify: the build itself is CMakeLists.txt, run by scripts/build.cjs.
  "targets": [
    {
      "target_name": "cluster_attention",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["build/Release/cluster_attention.node"],
          "action": ["node", "scripts/build.cjs"],
        }
      ],
    }
  ]
}
