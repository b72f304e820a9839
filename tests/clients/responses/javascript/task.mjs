// What the scripted model answers (two_tools.py), and where it is.
export const [baseURL, model, mcpURL] = process.env.PLACE.split(' ')

export const TASK = 'How warm is Paris in Fahrenheit?'
export const ANSWER = 'It is 69.8 °F in Paris.'
export const DENIED = 'Then it stays at 21 °C.'
export const ADA = { name: 'Ada', age: 36 }

export const getWeather = ({ city }) => (city === 'Paris' ? '21 degrees' : 'no such city')
