/* Search runs in a worker, which browsers deny to pages opened from a folder. There a hidden frame
   takes its place: it loads the worker's script and passes messages on. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inside = frame.contentWindow
      inside.document.open()
      inside.document.write(
        `<script>postMessage = data => parent.postMessage(data, "*")</${""}script>` +
          `<script src="${address}"></${""}script>`
      )
      inside.document.close()
      this.inside = inside
      this.loaded = new Promise(resolve => inside.addEventListener("load", resolve))
      addEventListener("message", event => {
        if (event.source === inside)
          this.dispatchEvent(new MessageEvent("message", { data: event.data }))
      })
    }

    postMessage(data) {
      this.loaded.then(() =>
        this.inside.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) }))
      )
    }
  }
}
