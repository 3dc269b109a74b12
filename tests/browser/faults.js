// What a reader would stumble over on the page that is open, as lines of text; none where nothing is wrong.
(async () => {
  const faults = [], phone = innerWidth < 600
  const named = (element) => `${element.tagName.toLowerCase()} "${(element.title || element.textContent).trim().slice(0, 40)}"`
  const seen = (element) => { const box = element.getBoundingClientRect(); return box.width > 1 && box.height > 1 }

  if (document.documentElement.scrollWidth > innerWidth)
    faults.push(`the page is ${document.documentElement.scrollWidth} px wide, the window ${innerWidth}`)

  for (const image of document.images) {
    await image.decode().catch(() => faults.push(`a picture does not load: ${image.alt}`))
  }

  for (const element of document.querySelectorAll("h1, h2, h3, svg.plot, table, img"))
    if (!seen(element)) faults.push(`not seen: ${named(element)}`)
  for (const element of document.querySelectorAll("h1, h2, p, svg.plot, .scroll, .tile, .row")) {
    const box = element.getBoundingClientRect()
    if (box.right > innerWidth + 1 || box.left < 0) faults.push(`beyond the window: ${named(element)}`)
  }
  for (const box of document.querySelectorAll(".tile b"))
    if (box.scrollWidth > box.clientWidth) faults.push(`cut off: ${named(box)}`)
  for (const link of document.querySelectorAll("nav a"))
    if (!document.querySelector(link.getAttribute("href"))) faults.push(`leads nowhere: ${named(link)}`)

  // Letters of figures are in units of the figure, which is scaled to its card.
  for (const text of document.querySelectorAll("svg.plot text, figcaption, td, th, p, a, span")) {
    const turned = text.ownerSVGElement && text.getScreenCTM() // names of upright axes are turned
    const scale = turned ? Math.hypot(turned.a, turned.b) : 1
    const size = parseFloat(getComputedStyle(text).fontSize) * scale
    // Exponents are letters too, and stand beside larger ones.
    if (size < (text.ownerSVGElement ? 6.5 : 11)) faults.push(`letters of ${size.toFixed(1)} px: ${named(text)}`)
  }

  // Colours as the screen mixes them: backgrounds of all elements around, then the text.
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
  const pen = canvas.getContext("2d", { willReadFrequently: true })
  const mixed = new Map()
  const mix = (layers) => {
    const key = layers.join("|")
    if (!mixed.has(key)) {
      for (const layer of layers) { pen.fillStyle = layer; pen.fillRect(0, 0, 1, 1) }
      const linear = [...pen.getImageData(0, 0, 1, 1).data.slice(0, 3)].map((level) => {
        const share = level / 255
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4
      })
      mixed.set(key, 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    }
    return mixed.get(key)
  }
  // What is below a page without a background of its own.
  const below = document.body.appendChild(document.createElement("i"))
  below.style.background = "Canvas"
  const canvasColor = getComputedStyle(below).backgroundColor
  below.remove()
  const written = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())
  for (const element of document.body.querySelectorAll("*")) {
    if (!written(element) || !seen(element)) continue
    const layers = []
    for (let around = element; around; around = around.parentElement) layers.unshift(getComputedStyle(around).backgroundColor)
    const style = getComputedStyle(element)
    const [ground, ink] = [mix([canvasColor, ...layers]), mix([canvasColor, ...layers, element.ownerSVGElement ? style.fill : style.color])]
    const contrast = (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05)
    if (contrast < 4.5) faults.push(`contrast of ${contrast.toFixed(2)}: ${named(element)}`)
  }

  const contents = document.querySelector("nav")
  if (contents && !phone) {
    scrollTo(0, document.documentElement.scrollHeight)
    await new Promise(requestAnimationFrame)
    if (contents.getBoundingClientRect().top < 0) faults.push("the contents do not stay in sight")
  }
  return faults
})()
